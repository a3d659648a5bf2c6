"""bundle (and engines) → a model repository of NVIDIA Triton Inference Server: one model per degree."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tocom.errors import EngineError, RequestError
from tocom.export.triton.config import TritonModel, engine_tensors, onnx_tensors
from tocom.export.triton.engines import find_servable, op_plugin_of
from tocom.export.triton.readme import readme
from tocom.formats.bundle import Bundle
from tocom.formats.onnx.tensors import external_data
from tocom.formats.sidecar import EngineTensor
from tocom.system.files import atomic_folder
from tocom.system.progress import Progress, silent

__all__ = ["TritonRepository", "write_triton_repository"]

_BACKENDS = ("auto", "tensorrt", "onnxruntime")
_VERSION = "1"
_LABELS = "labels.txt"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class TritonRepository:
    """A model repository on disk.

    Attributes:
        path: Its folder.
        models: Each degree's model, ascending by degree.
        op_plugin: File name of the op plugin library in it, which Triton must load by an option; None where none is.
    """

    path: Path
    models: dict[int, TritonModel]
    op_plugin: str | None

    def to_json(self) -> dict[str, Any]:
        """Return what a machine wants to know."""
        return {
            "repository": str(self.path),
            "op_plugin": self.op_plugin,
            "models": [
                {
                    "degree": degree,
                    "name": model.name,
                    "backend": model.backend,
                    "max_batch_size": model.max_batch_size,
                }
                for degree, model in self.models.items()
            ],
        }


def write_triton_repository(
    bundle: Bundle | Path | str,
    out: Path | str,
    *,
    backend: str = "auto",
    engines: Path | str | None = None,
    degrees: Sequence[int] | None = None,
    name: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> TritonRepository:
    """Write a repository that stands alone: nothing in it refers to the bundle.

    Args:
        bundle: The bundle, or its folder.
        out: Folder to write; each model is ``out/<name>-r<degree>/``.
        backend: What serves: ``tensorrt`` takes the bundle's engines; ``onnxruntime`` its ONNX files, with the weights
            once on the disk; ``auto`` the engines where there are any.
        engines: Folder of the engines, where the bundle has some for several devices.
        degrees: Degrees to take; None takes all of the engines, or of the bundle.
        name: What the models' names begin with; None takes the model's.
        overwrite: Replace ``out`` when it exists.
        progress: Called with what is being done, the steps done, and all steps.

    Raises:
        BundleError: The bundle is missing or damaged, lacks a degree, or no trusted key signed it.
        RequestError: An option is out of its range, or ``out`` would replace the bundle.
        EngineError: There are no engines, or one is not what its sidecar says.
        OutputError: ``out`` cannot be written, or is not empty.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle, verify=False)
    out = Path(out)
    prefix = _check_request(bundle, out, backend, engines, name)
    bundle.require_verified()
    engine_folder, engine_of = (out, {}) if backend == "onnxruntime" else find_servable(bundle, engines)
    if not engine_of and backend == "tensorrt":
        raise EngineError(f"{bundle.path} has no engines of TensorRT. Build them: tocom build --backend tensorrt.")
    chosen = sorted(set((engine_of or bundle.degrees) if degrees is None else degrees))
    if engine_of and (missing := [degree for degree in chosen if degree not in engine_of]):
        raise EngineError(
            f"{bundle.path} has no engine of degree {', '.join(map(str, missing))}. Build it, or take the degrees "
            f"{', '.join(map(str, engine_of))}."
        )
    models: dict[int, TritonModel] = {}
    with atomic_folder(out, overwrite=overwrite) as folder:
        for index, degree in enumerate(chosen):
            progress(f"degree {degree}: writing", index, len(chosen))
            model_folder = folder / f"{prefix}-r{degree:02d}"
            version = model_folder / _VERSION
            version.mkdir(parents=True)
            engine = engine_of.get(degree)
            if engine is None:
                inputs, outputs = _put_onnx(bundle, degree, version, [folder / model.name for model in models.values()])
            else:
                (version / "model.plan").write_bytes(engine.read_engine(engine_folder))
                inputs, outputs = engine_tensors(engine.inputs), engine_tensors(engine.outputs)
            model = TritonModel(
                name=model_folder.name,
                backend="onnxruntime" if engine is None else "tensorrt",
                batch=bundle.batch if engine is None else engine.options.batch,
                inputs=inputs,
                outputs=outputs,
                parameters=_parameters(bundle, degree),
                label_file=_LABELS if bundle.labels else None,
            )
            (model_folder / "config.pbtxt").write_text(model.to_pbtxt(), encoding="utf-8")
            if bundle.labels:
                lines = [" ".join(label.split()) for label in bundle.labels]
                (model_folder / _LABELS).write_text("\n".join(lines) + "\n", encoding="utf-8")
            models[degree] = model
        served = [engine_of[degree] for degree in chosen] if engine_of else []
        op_plugin = op_plugin_of(engine_folder, served)
        if op_plugin is not None:
            (folder / op_plugin[0]).write_bytes(op_plugin[1])
            (folder / op_plugin[0]).chmod(0o755)
        library = None if op_plugin is None else op_plugin[0]
        # Files: Triton takes every folder for a model.
        text = readme(bundle, served[0] if served else None, library)
        (folder / "README.md").write_text(text, encoding="utf-8")
        bundle.check_unchanged()
    return TritonRepository(out, models, library)


def _check_request(bundle: Bundle, out: Path, backend: str, engines: Path | str | None, name: str | None) -> str:
    """Check what can be checked before anything is written; return what the models' names begin with."""
    if backend not in _BACKENDS:
        raise RequestError(f"The 'backend' parameter must be auto, tensorrt or onnxruntime. Got {backend!r} instead.")
    if engines is not None and backend == "onnxruntime":
        raise RequestError("The 'engines' parameter is of the backend tensorrt; onnxruntime serves the ONNX files.")
    if bundle.path.resolve().is_relative_to(out.resolve()):
        raise RequestError(
            f"The 'out' parameter, {out}, would replace the bundle {bundle.path}. Choose another folder."
        )
    prefix = re.sub(r"[^A-Za-z0-9._-]", "-", bundle.model_name) if name is None else name
    if not _NAME.fullmatch(prefix):
        raise RequestError(
            f"The 'name' parameter must be letters, digits, '_', '-' and '.': it names folders. Got {prefix!r} instead."
        )
    return prefix


def _put_onnx(
    bundle: Bundle, degree: int, version: Path, before: Sequence[Path]
) -> tuple[tuple[EngineTensor, ...], tuple[EngineTensor, ...]]:
    """Write the ONNX file and, beside it as ONNX Runtime demands, its weights; return inputs and outputs."""
    content = bundle.read_onnx(degree)
    (version / "model.onnx").write_bytes(content)
    for location in sorted({each.location for each in external_data(content)}):
        target = version / location
        target.parent.mkdir(parents=True, exist_ok=True)
        earlier = next((path for model in before if (path := model / _VERSION / location).exists()), None)
        if earlier is None:
            shutil.copyfile(bundle.file(location), target)
            continue
        try:
            os.link(earlier, target)
        except OSError:  # a file system that has no links
            shutil.copyfile(earlier, target)
    return onnx_tensors(content, f"{bundle.path}/{bundle.degrees[degree].onnx}")


def _parameters(bundle: Bundle, degree: int) -> dict[str, str]:
    """Return what a client needs to choose a degree and to prepare images, as texts; lists are JSON."""
    entry, images = bundle.degrees[degree], bundle.manifest["input"]
    return {
        "degree": str(degree),
        "token_counts": json.dumps(entry.token_counts),
        "bundle_fingerprint": bundle.fingerprint,
        **{key: json.dumps(images[key]) for key in ("mean", "std", "crop")},
        "interpolation": images["interpolation"],
        "crop_mode": images["crop_mode"],
    }

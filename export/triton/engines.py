"""The engines of a bundle that Triton can serve: which folder, and whether its files are what their sidecars say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tocom.errors import EngineError
from tocom.export.triton.config import Tensor, engine_tensors
from tocom.formats.bundle import WEIGHTS_NAME, Bundle
from tocom.formats.engine import unpack_engine
from tocom.formats.sidecar import read_sidecar

__all__ = ["ServableEngine", "find_servable", "op_plugin_of"]

_BUILD = "Build them on the device that serves: 'tocom build --backend tensorrt'."


@dataclass(frozen=True)
class ServableEngine:
    """An engine of TensorRT, as its sidecar describes it.

    Attributes:
        degree: Its degree.
        path: The file.
        sha256: Of the file.
        content_bytes: Of the engine as TensorRT wrote it, where the file is compact; None where it is that already.
        inputs: Its inputs.
        outputs: Its outputs.
        batch: Smallest, optimal and largest batch.
        op_plugin: The op plugin library that it needs and that library's sha256, or None.
        tensorrt: Version that built it.
        device: Where it was built, for people.
        version_compatible: Whether it is for later versions too, which carries code of the builder.
    """

    degree: int
    path: Path
    sha256: str
    content_bytes: int | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batch: tuple[int, int, int]
    op_plugin: tuple[Path, str] | None
    tensorrt: str
    device: str
    version_compatible: bool

    def read(self) -> bytes | bytearray:
        """Return the engine as TensorRT wrote it.

        Raises:
            EngineError: The file is missing, or not what its sidecar says.
        """
        content = _read(self.path, self.sha256)
        return content if self.content_bytes is None else unpack_engine(content, self.content_bytes, self.path)


def find_servable(bundle: Bundle, folder: Path | str | None = None) -> dict[int, ServableEngine]:
    """Return the bundle's TensorRT engines by degree, ascending; none where it has none and no folder is named.

    Args:
        bundle: The bundle; its trusted keys, if it has any, must have signed the sidecars.
        folder: The engines' folder; None takes the only one of TensorRT.

    Raises:
        BundleError: No trusted key signed a sidecar.
        EngineError: The folder has no engine, one that Triton cannot load or one of another bundle; or there are
            several folders and none was named.
    """
    if folder is None:
        # TensorRT-RTX's begin alike, but with letters behind the dash.
        found = sorted(path for path in (bundle.path / "engines").glob("tensorrt-[0-9]*") if path.is_dir())
        if not found:
            return {}
        if len(found) > 1:
            raise EngineError(
                f"{bundle.path} has engines for {len(found)} devices: {', '.join(path.name for path in found)}. Name "
                "the folder to serve: --engines FOLDER."
            )
        folder = found[0]
    engines = [_open(bundle, sidecar) for sidecar in sorted(Path(folder).glob("degree-*.json"))]
    if not engines:
        raise EngineError(f"{folder} has no engines. {_BUILD}")
    return {engine.degree: engine for engine in sorted(engines, key=lambda engine: engine.degree)}


def op_plugin_of(engines: Sequence[ServableEngine]) -> tuple[str, bytes] | None:
    """Return name and bytes of the op plugin library that the engines need; None where they need none.

    Raises:
        EngineError: They need different ones, of which a process can load one; or it is not what it was.
    """
    needed = sorted({engine.op_plugin for engine in engines if engine.op_plugin is not None})
    if not needed:
        return None
    if len(needed) > 1:
        names = ", ".join(path.name for path, _ in needed)
        raise EngineError(
            f"The engines in {engines[0].path.parent} need different op plugin libraries ({names}), and Triton can "
            "load one. Build all degrees again: 'tocom build'."
        )
    path, sha256 = needed[0]
    return path.name, _read(path, sha256)


def _open(bundle: Bundle, sidecar: Path) -> ServableEngine:
    """Read a sidecar and check that its engine is of this bundle, for Triton, and signed where keys are asked for."""
    try:
        record, sha256 = read_sidecar(sidecar)
        if record["backend"] != "tensorrt":
            raise EngineError(
                f"{sidecar.parent} holds engines of {record['backend']}; Triton loads engines of TensorRT alone. "
                f"{_BUILD} Or serve the ONNX files: --backend onnxruntime."
            )
        engine = _parse(sidecar.parent, record)
        is_ours = _is_of(bundle, engine.degree, record["onnx"])
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"{sidecar} is no sidecar of an engine ({type(error).__name__}: {error}). Build the engines again."
        ) from error
    except ValueError as error:
        raise EngineError(f"{sidecar} is no valid JSON ({error}). Build the engines again.") from error
    if not is_ours:
        raise EngineError(f"{sidecar} is of an engine of another bundle, or of this one before a change. {_BUILD}")
    inside, place = sidecar.resolve(), bundle.path.resolve()
    name = inside.relative_to(place).as_posix() if inside.is_relative_to(place) else sidecar.name
    bundle.require_signed(name, sha256)
    return engine


def _parse(folder: Path, record: Mapping[str, Any]) -> ServableEngine:
    described, options, device, library = (record[key] for key in ("engine", "options", "device", "op_plugin"))
    smallest, optimal, largest = options["batch"]
    # Only the last part of a file name counts: nothing leads out of the folder.
    return ServableEngine(
        degree=record["degree"],
        path=folder / Path(described["file"]).name,
        sha256=described["sha256"],
        content_bytes=described["content_bytes"] if options["compact"] else None,
        inputs=engine_tensors(record["inputs"]),
        outputs=engine_tensors(record["outputs"]),
        batch=(smallest, optimal, largest),
        # Embedded in the engine, it is no file.
        op_plugin=(folder / Path(library["file"]).name, library["sha256"]) if library and library["file"] else None,
        tensorrt=record["backend_version"],
        device=device
        if isinstance(device, str)
        else f"{device['name']} (compute capability {device['compute_capability']})",
        version_compatible=options["version_compatible"],
    )


def _is_of(bundle: Bundle, degree: int, onnx: Mapping[str, Any]) -> bool:
    if degree not in bundle.degrees:
        return False
    files = bundle.manifest["files"]
    expected = files[bundle.degrees[degree].onnx]["sha256"], files.get(WEIGHTS_NAME, {}).get("sha256")
    return (onnx["sha256"], onnx["weights_sha256"]) == expected


def _read(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}). Build it again: 'tocom build'.") from error
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        raise EngineError(
            f"{path} has sha256 {got}, its sidecar says {sha256}: it was changed. Build it again: 'tocom build'."
        )
    return content

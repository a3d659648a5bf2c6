"""The sidecar of an engine: what it was built from, on what and how. It decides whether an engine is still current."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tocom.errors import EngineError
from tocom.export.engines.backend import PORTABLE, BackendFound, Device
from tocom.export.engines.source import OnnxSource
from tocom.export.op_plugin.library import OpPluginLibrary
from tocom.formats.build_options import BuildOptions
from tocom.formats.bundle import WEIGHTS_NAME, Bundle
from tocom.formats.engine import engine_name
from tocom.formats.onnx.summary import content_sha256
from tocom.formats.sidecar import (
    EngineAnswers,
    OnnxFiles,
    OpPluginFile,
    Sidecar,
    StoredEngine,
    read_sidecar,
    write_sidecar,
)
from tocom.formats.typed_json import as_dataclass
from tocom.system.files import sha256_file
from tocom.version import __version__

__all__ = ["Plan", "current", "library_name", "make_record"]


@dataclass(frozen=True)
class Plan:
    """Everything that decides one engine.

    Attributes:
        bundle: Where the degree comes from.
        degree: The degree.
        source: Its ONNX file.
        backend: What builds it.
        device: The GPU it is built on; None for an engine built without one.
        options: How it is built.
        library: The op plugin library in it; None when it runs no op plugin.
        folder: Where the engine goes.
    """

    bundle: Bundle
    degree: int
    source: OnnxSource
    backend: BackendFound
    device: Device | None
    options: BuildOptions
    library: OpPluginLibrary | None
    folder: Path

    @property
    def engine(self) -> Path:
        """The engine's file."""
        return self.folder / engine_name(self.degree, compact=self.options.compact)

    @property
    def sidecar(self) -> Path:
        """The engine's sidecar."""
        return (self.folder / engine_name(self.degree)).with_suffix(".json")

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """The GPUs that the engine is built for."""
        if self.device is None:
            return PORTABLE
        return (".".join(map(str, self.device.compute_capability)),)

    def made_from(self) -> dict[str, Any]:
        """Return what the engine depends on besides the ONNX file, as members of its sidecar."""
        options = self.options
        if self.source.op_nodes == 0:
            # Without an op there is nothing to lower: the dense engine is the same either way.
            options = replace(options, lowering=None)
        op_plugin = None
        if self.library is not None:
            op_plugin = OpPluginFile(
                sha256=self.library.sha256,
                tensorrt=".".join(map(str, self.library.tensorrt)),
                architectures=self.library.architectures,
                file=library_name(self.library),
            )
        return {
            "backend": self.backend.name,
            "backend_version": self.backend.version,
            "gpu": None if self.device is None else self.device.name,
            "compute_capabilities": self.compute_capabilities,
            "op_plugin": op_plugin,
            "options": options,
            "precision": self.bundle.precision,
        }

    def onnx(self) -> OnnxFiles:
        """Return the bundle's files as they are now."""
        weights = self.bundle.manifest["files"].get(WEIGHTS_NAME, {})
        return OnnxFiles(
            self.source.path.name, self.source.sha256, weights.get("sha256"), content_sha256(self.source.path)
        )


def library_name(library: OpPluginLibrary) -> str:
    """Return the name of the library's copy beside the engines: one per content, as engines load exactly theirs."""
    return f"libtocom_op_plugin-{library.sha256[:12]}.so"


def current(plan: Plan) -> Sidecar | None:
    """Return the sidecar of the engine on disk where it is whole and what ``plan`` would build, else None.

    The sidecar names the bundle's files as they are now afterwards. They differ where another degree joined the bundle:
    the weights lie elsewhere, and mean the same.
    """
    try:
        sidecar, _ = read_sidecar(plan.sidecar)
    except EngineError:
        return None
    wanted = plan.made_from()
    if sidecar.answers.asked is not None:
        # Built otherwise than asked, because that answered wrongly: asked the same again, it is what there is.
        del wanted["op_plugin"]
        if sidecar.answers.asked != wanted.pop("options"):
            return None
    if any(getattr(sidecar, name) != value for name, value in wanted.items()):
        return None
    if sidecar.mismatch(plan.bundle) is not None and sidecar.onnx.content_sha256 != content_sha256(plan.source.path):
        return None
    if not _is_whole(plan.engine, sidecar.engine):
        return None
    if sidecar.mismatch(plan.bundle) is not None:
        sidecar = replace(sidecar, onnx=plan.onnx())
        write_sidecar(plan.sidecar, sidecar)
    return sidecar


def make_record(plan: Plan, built: Mapping[str, Any]) -> Sidecar:
    """Return the sidecar of an engine that was just built.

    Args:
        plan: What was built.
        built: What the process that built it reported.
    """
    stored = {name: built[name] for name in ("sha256", "size_bytes", "content_bytes", "device_memory_bytes")}
    reported = ("inputs", "outputs", "layers", "op_plugin_layers", "tensors_dynamic_beyond_batch", "build_seconds")
    return as_dataclass(
        Sidecar,
        {
            **plan.made_from(),
            **{name: built[name] for name in reported},
            "created_by": f"tocom {__version__}",
            "model": plan.bundle.model_name,
            "degree": plan.degree,
            "token_counts": plan.bundle.degrees[plan.degree].token_counts,
            "onnx": plan.onnx(),
            "engine": {"file": plan.engine.name, **stored},
            "answers": asdict(EngineAnswers()),  # none were asked for yet
        },
    )


def _is_whole(engine: Path, stored: StoredEngine) -> bool:
    """Return whether the file is the one that was written."""
    try:
        return engine.stat().st_size == stored.size_bytes and sha256_file(engine) == stored.sha256
    except OSError:
        return False

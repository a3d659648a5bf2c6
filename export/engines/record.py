"""The sidecar of an engine: what it was built from, on what and how. It decides whether an engine is still current."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tocom.export.engines.backend import PORTABLE, BackendFound, Device
from tocom.export.engines.options import BuildOptions
from tocom.export.engines.source import OnnxSource
from tocom.export.op_plugin.library import OpPluginLibrary
from tocom.formats.bundle import WEIGHTS_NAME, Bundle
from tocom.formats.engine import engine_name
from tocom.system.files import sha256_file, write_json
from tocom.version import __version__

__all__ = [
    "SCHEMA_VERSION",
    "Plan",
    "is_current",
    "library_name",
    "read_record",
    "renew_record",
    "write_record",
]

SCHEMA_VERSION = 1


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
        """Return what the engine depends on besides the ONNX file, as the sidecar says it."""
        options = self.options.to_json()
        if self.source.op_nodes == 0:
            # Without an op there is nothing to lower: the dense engine is the same either way.
            options.update(lowering=None, embed_op_plugin=False)
        device: str | dict[str, str] = "portable"
        if self.device is not None:
            device = {"name": self.device.name, "compute_capability": self.compute_capabilities[0]}
        op_plugin = None
        if self.library is not None:
            op_plugin = {
                "sha256": self.library.sha256,
                "tensorrt": ".".join(map(str, self.library.tensorrt)),
                "architectures": list(self.library.architectures),
                "file": None if self.options.embed_op_plugin else library_name(self.library),
            }
        return {
            "schema_version": SCHEMA_VERSION,
            "backend": self.backend.name,
            "backend_version": self.backend.version,
            "device": device,
            "compute_capabilities": list(self.compute_capabilities),
            "op_plugin": op_plugin,
            "options": options,
            "precision": self.bundle.precision,
        }


def library_name(library: OpPluginLibrary) -> str:
    """Return the name of the library's copy beside the engines: one per content, as engines load exactly theirs."""
    return f"libtocom_op_plugin-{library.sha256[:12]}.so"


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a sidecar's content, or None when there is none that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def is_current(plan: Plan) -> bool:
    """Return whether the engine on disk is whole and what ``plan`` would build."""
    record = read_record(plan.sidecar)
    if record is None or any(record.get(key) != value for key, value in plan.made_from().items()):
        return False
    onnx = record.get("onnx")
    if not isinstance(onnx, dict) or not _same_model(plan, onnx):
        return False
    return _is_whole(plan.engine, record.get("engine"))


def write_record(plan: Plan, built: dict[str, Any]) -> dict[str, Any]:
    """Write the sidecar of an engine that was just built, and return its content."""
    record = {
        **plan.made_from(),
        "created_by": f"tocom {__version__}",
        "model": plan.bundle.model_name,
        "degree": plan.degree,
        "token_counts": list(plan.bundle.degrees[plan.degree].token_counts),
        "inputs": built["inputs"],
        "outputs": built["outputs"],
        "layers": built["layers"],
        "op_plugin_layers": built["op_plugin_layers"],
        "tensors_dynamic_beyond_batch": built["tensors_dynamic_beyond_batch"],
        "onnx": {**_files(plan), "content_sha256": plan.source.content_sha256()},
        "engine": {
            "file": plan.engine.name,
            "sha256": built["sha256"],
            "size_bytes": built["size_bytes"],
            "content_bytes": built["content_bytes"],
            "modified_ns": plan.engine.stat().st_mtime_ns,
        },
        "build_seconds": built["build_seconds"],
    }
    write_json(plan.sidecar, record)
    return record


def renew_record(plan: Plan) -> None:
    """Let the sidecar of a current engine name the bundle's files as they are now.

    They differ where another degree joined the bundle: the weights stand elsewhere, and mean the same.
    """
    record = read_record(plan.sidecar)
    if record is not None and any(record["onnx"].get(key) != value for key, value in _files(plan).items()):
        write_json(plan.sidecar, {**record, "onnx": {**record["onnx"], **_files(plan)}})


def _files(plan: Plan) -> dict[str, Any]:
    weights = plan.bundle.manifest["files"].get(WEIGHTS_NAME, {})
    return {
        "file": plan.source.path.name,
        "sha256": plan.source.sha256,
        "weights_sha256": weights.get("sha256"),
    }


def _same_model(plan: Plan, onnx: dict[str, Any]) -> bool:
    """Compare the cheap hashes first; only when the files differ, the content behind them."""
    files = _files(plan)
    if onnx.get("sha256") == files["sha256"] and onnx.get("weights_sha256") == files["weights_sha256"]:
        return True
    return onnx.get("content_sha256") == plan.source.content_sha256()


def _is_whole(engine: Path, described: Any) -> bool:
    """Return whether the file is the one that was written: by size and time, and by its hash where the time differs."""
    try:
        status = engine.stat()
        if status.st_size != described["size_bytes"]:
            return False
        return bool(status.st_mtime_ns == described["modified_ns"] or sha256_file(engine) == described["sha256"])
    except (OSError, KeyError, TypeError):
        return False

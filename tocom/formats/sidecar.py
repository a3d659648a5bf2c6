"""The sidecar of an engine: the JSON file beside it that says what the engine is, and what it was made from.

Whoever builds, loads, serves, verifies or packs an engine goes by it, through this one reader.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tocom.errors import EngineError
from tocom.formats.build_options import BuildOptions
from tocom.formats.bundle import WEIGHTS_NAME, Bundle
from tocom.formats.engine import unpack_engine
from tocom.formats.sealed_json import parse_json
from tocom.formats.typed_json import as_dataclass
from tocom.system.files import read_regular, write_json
from tocom.system.sealed_library import read_hashed

__all__ = [
    "EngineAnswers",
    "EngineTensor",
    "OnnxFiles",
    "OpPluginFile",
    "Sidecar",
    "StoredEngine",
    "read_sidecar",
    "sidecar_of",
    "write_sidecar",
]

_VERSION = 1
_MAX_BYTES = 4 << 20
_SHA256_LENGTH = 64


@dataclass(frozen=True)
class EngineTensor:
    """An input or output: TensorRT's name of its type, and its shape, -1 where it is free."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OnnxFiles:
    """The bundle's files that the engine was made from, and a hash of what they mean, wherever weights lie in them."""

    file: str
    sha256: str
    weights_sha256: str | None
    content_sha256: str


@dataclass(frozen=True)
class OpPluginFile:
    """The op plugin library that the engine runs; ``file`` lies beside the engine."""

    sha256: str
    tensorrt: str
    architectures: tuple[int, ...]
    file: str


@dataclass(frozen=True)
class StoredEngine:
    """The engine's file.

    Attributes:
        file: Its name.
        sha256: sha256 of the file.
        size_bytes: Size of the file.
        content_bytes: Size of the engine as TensorRT wrote it: more than the file has where that is compact.
        device_memory_bytes: Scratch memory of one context; None where it was built without a GPU to ask.
    """

    file: str
    sha256: str
    size_bytes: int
    content_bytes: int
    device_memory_bytes: int | None

    def __post_init__(self) -> None:
        if len(self.sha256) != _SHA256_LENGTH or min(self.size_bytes, self.content_bytes) < 0:
            raise ValueError("'engine' must have a sha256 of 64 digits and sizes that are not negative")


@dataclass(frozen=True)
class EngineAnswers:
    """What the engine answered to the bundle's reference images when it was built.

    Attributes:
        state: ``right``, or ``not run`` where it was built without a GPU.
        difference: Largest difference to a reference answer.
        allowed: Most that it may be.
        cosine: Smallest cosine.
        tried: The ways to build it that answered wrongly, in their order, and what they answered.
        asked: The options that were asked for, where others had to be taken.
    """

    state: str = "not run"
    difference: float | None = None
    allowed: float | None = None
    cosine: float | None = None
    tried: tuple[str, ...] = ()
    asked: BuildOptions | None = None


@dataclass(frozen=True)
class Sidecar:
    """What one engine is.

    Attributes:
        created_by: tocom and its version.
        model: timm name of the model.
        degree: Tokens removed in every block.
        precision: Precision of the bundle.
        token_counts: Tokens entering each block, and last those leaving the final block.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        backend_version: Version that built it.
        gpu: Name of the GPU that it was built on; None for a portable engine, built without one.
        compute_capabilities: The GPUs that it was built for.
        options: How it was built. A degree without ops has no lowering.
        op_plugin: The op plugin library that it runs; None where it runs none.
        onnx: What it was made from.
        engine: Its file.
        inputs: Its inputs.
        outputs: Its outputs.
        layers: Layers of the network.
        op_plugin_layers: Those of the op plugin.
        tensors_dynamic_beyond_batch: Tensors of which more than the batch is free; 0 is right.
        build_seconds: Time that the build took.
        answers: Whether it answered rightly when it was built.
    """

    created_by: str
    model: str
    degree: int
    precision: str
    token_counts: tuple[int, ...]
    backend: str
    backend_version: str
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    options: BuildOptions
    op_plugin: OpPluginFile | None
    onnx: OnnxFiles
    engine: StoredEngine
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    layers: int
    op_plugin_layers: int
    tensors_dynamic_beyond_batch: int
    build_seconds: float
    answers: EngineAnswers = EngineAnswers()

    def __post_init__(self) -> None:
        for name in (self.engine.file, *([self.op_plugin.file] if self.op_plugin else [])):
            if name != Path(name).name:
                raise ValueError(f"{name[:80]!r} leads out of the engines' folder")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return {"schema_version": _VERSION, **asdict(self)}

    def read_engine(self, folder: Path) -> bytes | bytearray:
        """Return the engine in a folder as TensorRT wrote it.

        Raises:
            EngineError: The file is missing, or not what the sidecar says.
        """
        path = folder / self.engine.file
        content = read_hashed(path, self.engine.sha256)
        return unpack_engine(content, self.engine.content_bytes, path) if self.options.compact else content

    def read_op_plugin(self, folder: Path) -> tuple[str, bytes] | None:
        """Return name and bytes of the op plugin library in a folder; None where the engine runs none.

        Raises:
            EngineError: The file is missing, or not what the sidecar says.
        """
        if self.op_plugin is None:
            return None
        return self.op_plugin.file, read_hashed(folder / self.op_plugin.file, self.op_plugin.sha256)

    def mismatch(self, bundle: Bundle) -> str | None:
        """Return why the engine is not of this bundle as it is now, or None where it is."""
        if self.degree not in bundle.degrees:
            return f"the bundle has no degree {self.degree}"
        files = bundle.manifest["files"]
        if self.onnx.sha256 != files[bundle.degrees[self.degree].onnx]["sha256"]:
            return "it was built from another ONNX file; build it again"
        if self.onnx.weights_sha256 != files.get(WEIGHTS_NAME, {}).get("sha256"):
            return "it was built from other weights; build it again"
        return None


def read_sidecar(path: Path) -> tuple[Sidecar, str]:
    """Return a sidecar, and the sha256 of the very bytes that it was read from.

    Raises:
        EngineError: It is missing, no regular file, larger than 4 MiB, of another version, or not a sidecar.
    """
    try:
        data = read_regular(path, _MAX_BYTES)
        return sidecar_of(parse_json(data)), hashlib.sha256(data).hexdigest()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EngineError(f"{path} is not a readable sidecar of an engine ({reason}). Build it again.") from error


def sidecar_of(content: Any) -> Sidecar:
    """Return the sidecar that JSON content describes.

    Raises:
        ValueError: It is of another version, or describes none.
    """
    version = content.get("schema_version") if isinstance(content, Mapping) else None
    if version != _VERSION:
        raise ValueError(f"it has version {str(version)[:80]!r}, this tocom reads {_VERSION}")
    return as_dataclass(Sidecar, {name: value for name, value in content.items() if name != "schema_version"})


def write_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Write a sidecar.

    Raises:
        OutputError: It cannot be written.
    """
    write_json(path, sidecar.to_json())

"""What the builder must know of an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tocom.errors import EngineError
from tocom.formats.onnx.summary import DOMAIN, has_zero_points, op_nodes, op_version
from tocom.system.files import sha256_file

__all__ = ["OP_VERSION", "OnnxSource", "read_source"]

OP_VERSION = 1
OPS = ("TokenMerge", "TokenPrune", "TokenMergeMapped", "TokenPruneMapped")


@dataclass(frozen=True)
class OnnxSource:
    """One degree's ONNX file.

    Attributes:
        path: The file.
        sha256: sha256 of the file itself.
        op_nodes: Nodes of domain ``tocom``, which the op plugin or the function bodies run.
        zero_points: Whether activations are quantized to uint8, with zero points.
    """

    path: Path
    sha256: str
    op_nodes: int
    zero_points: bool


def read_source(path: Path) -> OnnxSource:
    """Read what the builder must know.

    Raises:
        EngineError: The file is not an ONNX model, or its ops are of another version.
    """
    try:
        model = path.read_bytes()
        ops, version, zero_points = op_nodes(model), op_version(model), has_zero_points(model)
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}). Copy the bundle again.") from error
    except ValueError as error:
        raise EngineError(
            f"{path} is not an ONNX model, or is cut off. Copy the bundle again, or export it again."
        ) from error
    unknown = sorted({node.op_type for node in ops} - set(OPS))
    if ops and (version != OP_VERSION or unknown):
        what = f"the ops {', '.join(unknown)}" if unknown else f"version {version} of the ops"
        raise EngineError(
            f"{path} uses {what} of domain {DOMAIN!r}; this tocom builds {', '.join(OPS)} of version {OP_VERSION}. "
            "Export the bundle again with this version, or install the tocom that wrote it."
        )
    return OnnxSource(path, sha256_file(path), len(ops), zero_points)

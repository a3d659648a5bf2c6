"""What the builder must know of an ONNX file, read without the onnx package, which JetPack does not bring.

Field numbers: onnx.proto3 of ONNX 1.17 (ModelProto, GraphProto, NodeProto, TensorProto).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tocom.errors import EngineError
from tocom.formats.onnx.wire import read_fields, read_number
from tocom.system.files import sha256_file

__all__ = ["OP_VERSION", "OnnxSource", "read_source"]

DOMAIN = "tocom"
OP_VERSION = 1
OPS = ("TokenMerge", "TokenPrune")

_MODEL_GRAPH, _MODEL_OPSET = 7, 8
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_NODE_OP_TYPE, _NODE_DOMAIN = 4, 7
_TENSOR_EXTERNAL = 13
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class OnnxSource:
    """One degree's ONNX file.

    Attributes:
        path: The file.
        sha256: Of the file itself.
        op_nodes: Nodes of domain ``tocom``, which the op plugin or the function bodies run.
    """

    path: Path
    sha256: str
    op_nodes: int

    def content_sha256(self) -> str:
        """Return a hash of the model with its external weights, wherever they stand in the weights file.

        It stays the same when another degree joins the bundle and moves the weights around.
        """
        return _content_sha256(self.path)


def read_source(path: Path) -> OnnxSource:
    """Read what the builder must know.

    Raises:
        EngineError: The file is no ONNX model, or its ops are of another version.
    """
    try:
        graph, versions = b"", {}
        for number, _, content in read_fields(path.read_bytes()):
            if number == _MODEL_GRAPH:
                graph = content
            elif number == _MODEL_OPSET:
                opset = _message(content)
                versions[opset.get(_OPSET_DOMAIN, b"").decode()] = read_number(opset.get(_OPSET_VERSION, b"\0"))
        nodes = [_message(content) for number, _, content in read_fields(graph) if number == _GRAPH_NODE]
        ops = [node[_NODE_OP_TYPE].decode() for node in nodes if node.get(_NODE_DOMAIN, b"").decode() == DOMAIN]
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}). Copy the bundle again.") from error
    except (ValueError, KeyError) as error:
        raise EngineError(
            f"{path} is no ONNX model, or is cut off. Copy the bundle again, or export it anew."
        ) from error
    if not nodes:
        raise EngineError(f"{path} is no ONNX model with a graph. Copy the bundle again, or export it anew.")
    version = versions.get(DOMAIN, 0)
    unknown = sorted(set(ops) - set(OPS))
    if ops and (version != OP_VERSION or unknown):
        what = f"the ops {', '.join(unknown)}" if unknown else f"version {version} of the ops"
        raise EngineError(
            f"{path} uses {what} of domain {DOMAIN!r}; this tocom builds {', '.join(OPS)} of version {OP_VERSION}. "
            "Export the bundle anew with this version, or install the tocom that wrote it."
        )
    return OnnxSource(path, sha256_file(path), len(ops))


def _message(content: bytes) -> dict[int, bytes]:
    """Return a message's fields by number; of a repeated one the last."""
    return {number: value for number, _, value in read_fields(content)}


def _content_sha256(path: Path) -> str:
    """Hash every field of the model; an external tensor by the bytes it stands for, not by their place."""
    digest = hashlib.sha256()
    for number, _, value in read_fields(path.read_bytes()):
        if number != _MODEL_GRAPH:
            _add(digest, number, value)
            continue
        for graph_number, _, graph_value in read_fields(value):
            if graph_number != _GRAPH_INITIALIZER:
                _add(digest, graph_number, graph_value)
                continue
            place: dict[str, str] = {}
            for tensor_number, _, tensor_value in read_fields(graph_value):
                if tensor_number == _TENSOR_EXTERNAL:
                    entry = _message(tensor_value)
                    place[entry[1].decode()] = entry[2].decode()
                else:
                    _add(digest, tensor_number, tensor_value)
            if place:
                _add_external(digest, path.parent / place["location"], int(place["offset"]), int(place["length"]))
    return digest.hexdigest()


def _add(digest: hashlib._Hash, number: int, content: bytes) -> None:
    digest.update(f"{number}:{len(content)}:".encode())
    digest.update(content)


def _add_external(digest: hashlib._Hash, path: Path, offset: int, length: int) -> None:
    with path.open("rb") as file:
        file.seek(offset)
        while length > 0 and (chunk := file.read(min(length, _CHUNK_BYTES))):
            digest.update(chunk)
            length -= len(chunk)

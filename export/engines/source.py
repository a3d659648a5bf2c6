"""What the builder must know of an ONNX file, read without the onnx package, which JetPack does not bring.

Field numbers: onnx.proto3 of ONNX 1.17 (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tocom.errors import EngineError
from tocom.formats.onnx.wire import read_fields, read_number
from tocom.system.files import sha256_file

__all__ = ["OP_VERSION", "OnnxSource", "OpNode", "op_nodes", "read_source", "without_functions"]

DOMAIN = "tocom"
OP_VERSION = 1
OPS = ("TokenMerge", "TokenPrune")

_MODEL_GRAPH, _MODEL_OPSET, _MODEL_FUNCTION = 7, 8, 25
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_NODE_INPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_TEXT = 1, 4
_TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL = 2, 8, 13
_UINT8 = 2
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class OnnxSource:
    """One degree's ONNX file.

    Attributes:
        path: The file.
        sha256: Of the file itself.
        op_nodes: Nodes of domain ``tocom``, which the op plugin or the function bodies run.
        zero_points: Whether activations are quantized to uint8, with zero points.
    """

    path: Path
    sha256: str
    op_nodes: int
    zero_points: bool = False

    def content_sha256(self) -> str:
        """Return a hash of the model with its external weights, wherever they stand in the weights file.

        It stays the same when another degree joins the bundle and moves the weights around.
        """
        return _content_sha256(self.path)


@dataclass(frozen=True)
class OpNode:
    """A node of domain ``tocom``.

    Attributes:
        op_type: Its op.
        plugin: The version and the namespace that it names its op plugin by; empty where it says none.
    """

    op_type: str
    plugin: tuple[str, str]


def op_nodes(model: bytes) -> list[OpNode]:
    """Return the nodes of domain ``tocom`` of an ONNX file's bytes.

    Raises:
        ValueError: The bytes are no protobuf message.
    """
    found = []
    for content in _repeated(_graph(model), _GRAPH_NODE):
        node = _message(content)
        if node.get(_NODE_DOMAIN, b"").decode() == DOMAIN:
            attributes = [_message(each) for each in _repeated(content, _NODE_ATTRIBUTE)]
            texts = {each[_ATTRIBUTE_NAME]: each.get(_ATTRIBUTE_TEXT, b"").decode() for each in attributes}
            names = texts.get(b"plugin_version", ""), texts.get(b"plugin_namespace", "")
            found.append(OpNode(node[_NODE_OP_TYPE].decode(), names))
    return found


def without_functions(model: bytes) -> bytes:
    """Return an ONNX file's bytes without its model-local functions: the op plugin alone can give its nodes meaning."""
    return b"".join(header + content for number, header, content in read_fields(model) if number != _MODEL_FUNCTION)


def read_source(path: Path) -> OnnxSource:
    """Read what the builder must know.

    Raises:
        EngineError: The file is no ONNX model, or its ops are of another version.
    """
    try:
        model = path.read_bytes()
        graph, versions = _graph(model), {}
        for content in _repeated(model, _MODEL_OPSET):
            opset = _message(content)
            versions[opset.get(_OPSET_DOMAIN, b"").decode()] = read_number(opset.get(_OPSET_VERSION, b"\0"))
        nodes = [_message(content) for content in _repeated(graph, _GRAPH_NODE)]
        ops = [node.op_type for node in op_nodes(model)]
        zero_points = _has_zero_points(graph, nodes)
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
    return OnnxSource(path, sha256_file(path), len(ops), zero_points)


def _graph(model: bytes) -> bytes:
    return next(_repeated(model, _MODEL_GRAPH), b"")


def _repeated(message: bytes, wanted: int) -> Iterator[bytes]:
    return (content for number, _, content in read_fields(message) if number == wanted)


def _has_zero_points(graph: bytes, nodes: list[dict[int, bytes]]) -> bool:
    """Return whether a node takes uint8 zero points: the last input of QuantizeLinear and DequantizeLinear."""
    last_inputs = {
        node[_NODE_INPUT] for node in nodes if node[_NODE_OP_TYPE] in (b"QuantizeLinear", b"DequantizeLinear")
    }
    if not last_inputs:
        return False
    tensors = (_message(content) for content in _repeated(graph, _GRAPH_INITIALIZER))
    return any(read_number(each[_TENSOR_TYPE]) == _UINT8 and each.get(_TENSOR_NAME) in last_inputs for each in tensors)


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

"""What the builder must know of an ONNX file, read without the onnx package, which JetPack does not bring.

Field numbers: onnx.proto3 of ONNX 1.17 (ModelProto, GraphProto, NodeProto, TensorProto). Only what is named here is
read; everything else is skipped by its length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tocom.errors import EngineError
from tocom.files import sha256_file

__all__ = ["OP_VERSION", "OnnxSource", "read_source"]

DOMAIN = "tocom"
OP_VERSION = 1
OPS = ("TokenMerge", "TokenPrune")

_MODEL_GRAPH, _MODEL_OPSET = 7, 8
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
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
        content = memoryview(path.read_bytes())
        graph, versions = memoryview(b""), {}
        for number, value in _fields(content):
            if number == _MODEL_GRAPH:
                graph = _bytes(value)
            elif number == _MODEL_OPSET:
                opset = dict(_fields(_bytes(value)))
                versions[bytes(_bytes(opset.get(1, memoryview(b"")))).decode()] = opset.get(2, 0)
        nodes = [dict(_fields(_bytes(value))) for number, value in _fields(graph) if number == _GRAPH_NODE]
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}). Copy the bundle again.") from error
    except (ValueError, IndexError, TypeError) as error:
        raise EngineError(
            f"{path} is no ONNX model, or is cut off. Copy the bundle again, or export it anew."
        ) from error
    if not nodes:
        raise EngineError(f"{path} is no ONNX model with a graph. Copy the bundle again, or export it anew.")
    ops = [bytes(_bytes(node[_NODE_OP_TYPE])).decode() for node in nodes if _domain(node) == DOMAIN]
    version = versions.get(DOMAIN, 0)
    unknown = sorted(set(ops) - set(OPS))
    if ops and (version != OP_VERSION or unknown):
        what = f"the ops {', '.join(unknown)}" if unknown else f"version {version} of the ops"
        raise EngineError(
            f"{path} uses {what} of domain {DOMAIN!r}; this tocom builds {', '.join(OPS)} of version {OP_VERSION}. "
            "Export the bundle anew with this version, or install the tocom that wrote it."
        )
    return OnnxSource(path, sha256_file(path), len(ops))


def _domain(node: dict[int, memoryview | int]) -> str:
    return bytes(_bytes(node.get(_NODE_DOMAIN, memoryview(b"")))).decode()


def _content_sha256(path: Path) -> str:
    """Hash every field of the model; an external tensor by the bytes it stands for, not by their place."""
    digest = hashlib.sha256()
    for number, value in _fields(memoryview(path.read_bytes())):
        if number != _MODEL_GRAPH:
            _add(digest, number, value)
            continue
        for graph_number, graph_value in _fields(_bytes(value)):
            if graph_number != _GRAPH_INITIALIZER:
                _add(digest, graph_number, graph_value)
                continue
            place: dict[str, str] = {}
            for tensor_number, tensor_value in _fields(_bytes(graph_value)):
                if tensor_number == _TENSOR_EXTERNAL:
                    entry = dict(_fields(_bytes(tensor_value)))
                    place[bytes(_bytes(entry[1])).decode()] = bytes(_bytes(entry[2])).decode()
                else:
                    _add(digest, tensor_number, tensor_value)
            if place:
                _add_external(digest, path.parent / place["location"], int(place["offset"]), int(place["length"]))
    return digest.hexdigest()


def _add(digest: hashlib._Hash, number: int, value: memoryview | int) -> None:
    data = value if isinstance(value, memoryview) else str(value).encode()
    digest.update(f"{number}:{len(data)}:".encode())
    digest.update(data)


def _add_external(digest: hashlib._Hash, path: Path, offset: int, length: int) -> None:
    with path.open("rb") as file:
        file.seek(offset)
        while length > 0 and (chunk := file.read(min(length, _CHUNK_BYTES))):
            digest.update(chunk)
            length -= len(chunk)


def _bytes(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")
    return value


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield the fields of a protobuf message: numbers as int, everything else as its bytes."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == 2:
            length, place = _varint(message, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if place + length > len(message):
            raise ValueError("a field ends behind its message")
        yield number, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")

"""The tensors of an ONNX file: where they lie, and how to say that they lie elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tocom.formats.onnx import fields
from tocom.formats.onnx.wire import LENGTH_DELIMITED, Message, delimited, read_fields, read_number, read_varint

__all__ = ["ExternalData", "Tensor", "external_data", "read_tensors", "rewrite_external_data", "stored_tensors"]

# Bits of an element, by TensorProto.DataType; strings (8) cannot lie outside the file.
_BITS = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
}
# Which fields of which message lead to a tensor: also those in subgraphs, functions, attributes and sparse tensors.
_CHILDREN = {
    "model": {fields.MODEL_GRAPH: "graph", fields.MODEL_TRAINING: "training", fields.MODEL_FUNCTION: "function"},
    "training": dict.fromkeys((fields.TRAINING_INITIALIZATION, fields.TRAINING_ALGORITHM), "graph"),
    "graph": {fields.GRAPH_NODE: "node", fields.GRAPH_INITIALIZER: "tensor", fields.GRAPH_SPARSE: "sparse"},
    "function": {fields.FUNCTION_NODE: "node", fields.FUNCTION_ATTRIBUTE: "attribute"},
    "node": {fields.NODE_ATTRIBUTE: "attribute"},
    "attribute": {
        **dict.fromkeys((fields.ATTRIBUTE_TENSOR, fields.ATTRIBUTE_TENSORS), "tensor"),
        **dict.fromkeys((fields.ATTRIBUTE_GRAPH, fields.ATTRIBUTE_GRAPHS), "graph"),
        **dict.fromkeys((fields.ATTRIBUTE_SPARSE, fields.ATTRIBUTE_SPARSES), "sparse"),
    },
    "sparse": dict.fromkeys((fields.SPARSE_VALUES, fields.SPARSE_INDICES), "tensor"),
}
_MAX_TENSORS = 100_000
_MAX_NESTING = 32
_MAX_DIMS = 64
Change = Callable[[dict[str, str]], dict[str, str]]


@dataclass(frozen=True)
class Tensor:
    """An initializer: its dimensions, and where its bytes lie when they lie outside the file.

    Attributes:
        dims: Its dimensions.
        stored_at: File name and offset of the bytes; None inside the ONNX file.
        bytes: Their count; 0 inside the ONNX file.
        kind: Type of its elements, as TensorProto.DataType numbers them.
    """

    dims: tuple[int, ...]
    stored_at: tuple[str, int] | None
    bytes: int
    kind: int


@dataclass(frozen=True)
class ExternalData:
    """Where a tensor's bytes lie outside the ONNX file.

    Attributes:
        location: File name, relative to the ONNX file's folder.
        offset: Offset of the first byte.
        length: Count of bytes.
        needed: Bytes that a tensor of its shape and type has.
    """

    location: str
    offset: int
    length: int
    needed: int


def external_data(model: bytes) -> Iterator[ExternalData]:
    """Yield where the bytes lie of every tensor outside the ONNX file, wherever it stands in the model.

    Raises:
        ValueError: The bytes are not a protobuf message, an entry lacks a part or is not a number, or the model has
            more than 100,000 tensors or nests deeper than 32 levels.
    """
    for count, each in enumerate(_outside(model, "model", 0)):
        if count >= _MAX_TENSORS:
            raise ValueError(f"more than {_MAX_TENSORS} tensors")
        yield each


def _outside(message: bytes, kind: str, depth: int) -> Iterator[ExternalData]:
    if depth > _MAX_NESTING:
        raise ValueError(f"graphs nest more than {_MAX_NESTING} levels deep")
    # Every such tensor has this key, so what lacks it, which is nearly all of a model, is passed over at once.
    if b"location" not in message:
        return
    if kind == "tensor":
        yield _external_data(message)
        return
    for number, header, content in read_fields(message):
        child = _CHILDREN[kind].get(number)
        if child is not None and header[0] & 7 == LENGTH_DELIMITED:
            yield from _outside(content, child, depth + 1)


def _external_data(message: bytes) -> ExternalData:
    tensor = _tensor(message)
    if tensor.stored_at is None:
        raise ValueError("a tensor's external data is not readable")
    bits = _BITS.get(tensor.kind)
    if bits is None:
        raise ValueError(f"tensors of type {tensor.kind} cannot lie outside the file")
    return ExternalData(*tensor.stored_at, tensor.bytes, (math.prod(tensor.dims) * bits + 7) // 8)


def read_tensors(model: bytes) -> list[Tensor]:
    """Return the initializers of an ONNX file.

    Raises:
        ValueError: The bytes are not a protobuf message.
    """
    graphs = [content for number, _, content in read_fields(model) if number == fields.MODEL_GRAPH]
    return [
        _tensor(content)
        for graph in graphs
        for number, _, content in read_fields(graph)
        if number == fields.GRAPH_INITIALIZER
    ]


def stored_tensors(tensors: Iterable[Tensor]) -> dict[tuple[str, int], int]:
    """Return the sizes in bytes of what lies outside the ONNX file, by file and offset: each stored tensor once."""
    return {tensor.stored_at: tensor.bytes for tensor in tensors if tensor.stored_at is not None}


def rewrite_external_data(model: bytes, change: Change) -> bytes:
    """Return the model with the external-data entries of every initializer replaced.

    Args:
        model: Bytes of an ONNX file.
        change: Gets an initializer's entries (``location``, ``offset``, ``length``, …), returns the new ones. Not
            called for initializers that lie in the file itself.

    Raises:
        ValueError: The bytes are not a protobuf message.
    """
    return _rewrite(model, (fields.MODEL_GRAPH, fields.GRAPH_INITIALIZER), change)


def _rewrite(message: bytes, path: tuple[int, ...], change: Change) -> bytes:
    if not path:
        return _rewrite_tensor(message, change)
    pieces = []
    for number, header, content in read_fields(message):
        if number == path[0] and header[0] & 7 == LENGTH_DELIMITED:
            pieces.append(delimited(number, _rewrite(content, path[1:], change)))
        else:
            pieces.append(header + content)
    return b"".join(pieces)


def _tensor(message: bytes) -> Tensor:
    dims: list[int] = []
    kind = 0
    entries: dict[str, str] = {}
    for number, header, content in read_fields(message):
        if number == fields.TENSOR_DIMS and header[0] & 7 == LENGTH_DELIMITED:
            position = 0
            while position < len(content):
                size, position = read_varint(content, position)
                dims.append(size)
        elif number == fields.TENSOR_DIMS:
            dims.append(read_number(content))
        elif number == fields.TENSOR_TYPE:
            kind = read_number(content)
        elif number == fields.TENSOR_EXTERNAL:
            key, value = _pair(content)
            if key in entries:
                raise ValueError(f"a tensor names its {key} twice")
            entries[key] = value
    if len(dims) > _MAX_DIMS:
        raise ValueError(f"a tensor has more than {_MAX_DIMS} dimensions")
    if not entries:
        return Tensor(tuple(dims), None, 0, kind)
    offset, length = int(entries.get("offset", "0")), int(entries.get("length", "0"))
    if offset < 0 or length < 0:
        raise ValueError(f"a tensor lies at {offset} with {length} bytes")
    return Tensor(tuple(dims), (entries.get("location", ""), offset), length, kind)


def _pair(content: bytes) -> tuple[str, str]:
    entry = Message(content)
    return entry.text(fields.ENTRY_KEY), entry.text(fields.ENTRY_VALUE)


def _rewrite_tensor(message: bytes, change: Change) -> bytes:
    kept, entries = [], {}
    for number, header, content in read_fields(message):
        if number == fields.TENSOR_EXTERNAL:
            key, value = _pair(content)
            entries[key] = value
        else:
            kept.append(header + content)
    if not entries:
        return message
    for key, value in change(entries).items():
        pair_bytes = delimited(fields.ENTRY_KEY, key.encode()) + delimited(fields.ENTRY_VALUE, value.encode())
        kept.append(delimited(fields.TENSOR_EXTERNAL, pair_bytes))
    return b"".join(kept)

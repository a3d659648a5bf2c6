"""The tensors of an ONNX file: where they lie, and how to say that they lie elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tocom.formats.onnx import fields
from tocom.formats.onnx.wire import LENGTH_DELIMITED, Message, delimited, read_fields

__all__ = ["Tensor", "external_data", "read_tensors", "rewrite_external_data", "stored_tensors"]

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
    """A tensor of an ONNX file, and where its bytes lie when they lie outside the file.

    Attributes:
        dims: Its dimensions.
        kind: Type of its elements, as TensorProto.DataType numbers them.
        location: The file that its bytes lie in, relative to the ONNX file's folder; empty inside the ONNX file.
        offset: Offset of its first byte there.
        length: Count of its bytes there.
    """

    dims: tuple[int, ...]
    kind: int
    location: str = ""
    offset: int = 0
    length: int = 0

    @property
    def needed(self) -> int:
        """Bytes that a tensor of its shape and type has.

        Raises:
            ValueError: Tensors of its type cannot lie outside the file.
        """
        if self.kind not in _BITS:
            raise ValueError(f"tensors of type {self.kind} cannot lie outside the file")
        return (math.prod(self.dims) * _BITS[self.kind] + 7) // 8


def external_data(model: bytes) -> Iterator[Tensor]:
    """Yield every tensor whose bytes lie outside the ONNX file, wherever it stands in the model.

    Raises:
        ValueError: The bytes are not a protobuf message, an entry lacks a part or is not a number, or the model has
            more than 100,000 tensors or nests deeper than 32 levels.
    """
    for count, each in enumerate(_outside(model, "model", 0)):
        if count >= _MAX_TENSORS:
            raise ValueError(f"more than {_MAX_TENSORS} tensors")
        yield each


def _outside(message: bytes, kind: str, depth: int) -> Iterator[Tensor]:
    if depth > _MAX_NESTING:
        raise ValueError(f"graphs nest more than {_MAX_NESTING} levels deep")
    # Every such tensor has this key, so what lacks it, which is nearly all of a model, is passed over at once.
    if b"location" not in message:
        return
    if kind == "tensor":
        yield _tensor(Message(message))
        return
    for number, header, content in read_fields(message):
        child = _CHILDREN[kind].get(number)
        if child is not None and header[0] & 7 == LENGTH_DELIMITED:
            yield from _outside(content, child, depth + 1)


def read_tensors(model: bytes) -> list[Tensor]:
    """Return the initializers of an ONNX file.

    Raises:
        ValueError: The bytes are not a protobuf message.
    """
    initializers = Message(model).message(fields.MODEL_GRAPH).messages(fields.GRAPH_INITIALIZER)
    return [_tensor(each) for each in initializers]


def stored_tensors(tensors: Iterable[Tensor]) -> dict[tuple[str, int], int]:
    """Return the sizes in bytes of what lies outside the ONNX file, by file and offset: each stored tensor once."""
    return {(each.location, each.offset): each.length for each in tensors if each.location}


def rewrite_external_data(model: bytes, change: Change) -> bytes:
    """Return the model with the external-data entries of every initializer replaced.

    Args:
        model: Bytes of an ONNX file.
        change: Gets an initializer's entries (``location``, ``offset``, ``length``, …), returns the new ones. Not
            called for initializers that lie in the file itself.

    Raises:
        ValueError: The bytes are not a protobuf message.
    """
    return _changed(
        model,
        fields.MODEL_GRAPH,
        lambda graph: _changed(graph, fields.GRAPH_INITIALIZER, lambda tensor: _rewrite_tensor(tensor, change)),
    )


def _changed(message: bytes, field: int, change: Callable[[bytes], bytes]) -> bytes:
    """Return a message with the messages of one field changed."""
    pieces = []
    for number, header, content in read_fields(message):
        is_meant = number == field and header[0] & 7 == LENGTH_DELIMITED
        pieces.append(delimited(number, change(content)) if is_meant else header + content)
    return b"".join(pieces)


def _tensor(message: Message) -> Tensor:
    dims, kind = tuple(message.numbers(fields.TENSOR_DIMS)), message.number(fields.TENSOR_TYPE)
    if len(dims) > _MAX_DIMS:
        raise ValueError(f"a tensor has more than {_MAX_DIMS} dimensions")
    if not (entries := _entries(message)):
        return Tensor(dims, kind)
    offset, length = int(entries.get("offset", "0")), int(entries.get("length", "0"))
    if offset < 0 or length < 0:
        raise ValueError(f"a tensor lies at {offset} with {length} bytes")
    return Tensor(dims, kind, entries.get("location", ""), offset, length)


def _entries(tensor: Message) -> dict[str, str]:
    """Return a tensor's external data, by key."""
    found: dict[str, str] = {}
    for entry in tensor.messages(fields.TENSOR_EXTERNAL):
        key = entry.text(fields.ENTRY_KEY)
        if key in found:
            raise ValueError(f"a tensor names its {key} twice")
        found[key] = entry.text(fields.ENTRY_VALUE)
    return found


def _rewrite_tensor(message: bytes, change: Change) -> bytes:
    if not (entries := _entries(Message(message))):
        return message
    kept = [header + content for number, header, content in read_fields(message) if number != fields.TENSOR_EXTERNAL]
    for key, value in change(entries).items():
        pair = delimited(fields.ENTRY_KEY, key.encode()) + delimited(fields.ENTRY_VALUE, value.encode())
        kept.append(delimited(fields.TENSOR_EXTERNAL, pair))
    return b"".join(kept)

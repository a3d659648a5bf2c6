"""What an ONNX file holds, read without the onnx package, which JetPack does not bring."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tocom.formats.onnx import fields
from tocom.formats.onnx.tensors import rewrite_external_data
from tocom.formats.onnx.wire import Message, read_fields

__all__ = [
    "DOMAIN", "OpNode", "content_sha256", "has_zero_points", "op_nodes", "op_version", "values",
    "without_functions",
]  # fmt: skip

DOMAIN = "tocom"
Value = tuple[str, int, tuple[int, ...]]
_UINT8 = 2
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")


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
        ValueError: The bytes are not a protobuf message, or hold no node at all.
    """
    found = []
    nodes = Message(model).message(fields.MODEL_GRAPH).messages(fields.GRAPH_NODE)
    if not nodes:
        raise ValueError("no graph with nodes")
    for node in nodes:
        if node.text(fields.NODE_DOMAIN) == DOMAIN:
            attributes = node.messages(fields.NODE_ATTRIBUTE)
            texts = {each.text(fields.ATTRIBUTE_NAME): each.text(fields.ATTRIBUTE_TEXT) for each in attributes}
            names = texts.get("plugin_version", ""), texts.get("plugin_namespace", "")
            found.append(OpNode(node.text(fields.NODE_OP_TYPE), names))
    return found


def op_version(model: bytes) -> int:
    """Return the version of the ops of domain ``tocom`` that a model uses; 0 where it uses none."""
    opsets = Message(model).messages(fields.MODEL_OPSET)
    return next((o.number(fields.OPSET_VERSION) for o in opsets if o.text(fields.OPSET_DOMAIN) == DOMAIN), 0)


def has_zero_points(model: bytes) -> bool:
    """Return whether a node takes uint8 zero points: the last input of QuantizeLinear and DequantizeLinear."""
    graph = Message(model).message(fields.MODEL_GRAPH)
    nodes = [node for node in graph.messages(fields.GRAPH_NODE) if node.text(fields.NODE_OP_TYPE) in _QUANTIZING]
    last_inputs = {node.text(fields.NODE_INPUT) for node in nodes}
    return bool(last_inputs) and any(
        tensor.number(fields.TENSOR_TYPE) == _UINT8 and tensor.text(fields.TENSOR_NAME) in last_inputs
        for tensor in graph.messages(fields.GRAPH_INITIALIZER)
    )


def values(model: bytes) -> tuple[list[Value], list[Value]]:
    """Return the inputs and the outputs: each its name, its type as TensorProto.DataType, and its shape, -1 where free.

    Raises:
        ValueError: The bytes are not a protobuf message.
    """
    graph = Message(model).message(fields.MODEL_GRAPH)
    inputs, outputs = (graph.messages(number) for number in (fields.GRAPH_INPUT, fields.GRAPH_OUTPUT))
    return [_value(each) for each in inputs], [_value(each) for each in outputs]


def without_functions(model: bytes) -> bytes:
    """Return an ONNX file's bytes without its model-local functions: the op plugin alone can give its nodes meaning."""
    kept = (header + content for number, header, content in read_fields(model) if number != fields.MODEL_FUNCTION)
    return b"".join(kept)


def content_sha256(path: Path) -> str:
    """Return a hash of a model; of an external tensor by its bytes, not by where they lie.

    So it stays the same when another degree joins the bundle and moves the weights around.
    """

    def by_bytes(entries: dict[str, str]) -> dict[str, str]:
        with (path.parent / entries["location"]).open("rb") as file:
            file.seek(int(entries["offset"]))
            return {"sha256": hashlib.sha256(file.read(int(entries["length"]))).hexdigest()}

    return hashlib.sha256(rewrite_external_data(path.read_bytes(), by_bytes)).hexdigest()


def _value(described: Message) -> Value:
    tensor = described.message(fields.VALUE_TYPE).message(fields.TYPE_TENSOR)
    # A dimension without a value has a name: it is free.
    dims = tensor.message(fields.TYPE_SHAPE).messages(fields.SHAPE_DIM)
    shape = tuple(dim.number(fields.DIM_VALUE, -1) for dim in dims)
    return described.text(fields.VALUE_NAME), tensor.number(fields.TYPE_ELEMENT), shape

"""Equalization: even channels before eight bits (SmoothQuant, Xiao et al., ICML 2023, equation 4).

One scale serves all channels of a layer's input, so a few channels with large values leave few codes to the others.
Each input channel ``j`` is divided by ``s_j = max|X_j|^strength / max|W_j|^(1 − strength)`` and its row of the weights
multiplied by it: the product is the same, its two factors are even. The division costs nothing, as it is folded into
what makes the input:

- q, k, v and the first layer of the MLP: into weight and bias of the layer norm before them;
- the projection: into the output channels of v and of its bias, as attention only mixes tokens.

The second layer of the MLP comes after GELU, into which nothing folds; it stays as it is. All degrees share one set of
scales, from the largest values over the degrees, so weights that degrees share stay shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tocom.calibration.int8.qdq import quantizable_layers
from tocom.calibration.int8.ranges import activations_of

__all__ = ["LargestValues", "equalization_scales", "equalized", "largest_values"]

Scales = dict[str, NDArray[np.float32]]
"""Per group of layers, what each input channel is divided by, [channels]."""

# What lies between v and the projection in attention: none of them mixes channels.
_ON_THE_WAY_TO_V = ("Reshape", "Transpose", "Identity")
_TINY = 1e-5


@dataclass(frozen=True)
class LargestValues:
    """Largest absolute values per group and input channel at one degree.

    Attributes:
        inputs: Of the activations, [channels].
        weights: Of the group's weights that the channel is multiplied with, [channels].
    """

    inputs: Mapping[str, NDArray[np.float32]]
    weights: Mapping[str, NDArray[np.float32]]


def largest_values(
    model: onnx.ModelProto, folder: Path, images: NDArray[np.float32], *, batch: int = 1
) -> LargestValues:
    """Run a degree on images and return the largest values of each group that equalization can reach.

    Args:
        model: The degree's model with its weights loaded.
        folder: Of the bundle.
        images: [count, channels, height, width], float32.
        batch: Images per inference.
    """
    groups = _groups(model.graph)
    inputs: dict[str, NDArray[np.float32]] = {}
    for values in activations_of(model, folder, images, [group.input for group in groups.values()], batch=batch):
        for name, group in groups.items():
            found = np.abs(values[group.input]).max(axis=tuple(range(values[group.input].ndim - 1)))
            inputs[name] = np.maximum(inputs[name], found) if name in inputs else found
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {
        name: np.max([np.abs(numpy_helper.to_array(constants[each])).max(1) for each in group.weights], axis=0)
        for name, group in groups.items()
    }
    return LargestValues(inputs, weights)


def equalization_scales(largest: Sequence[LargestValues], strength: float) -> Scales:
    """Return one set of scales for all degrees, their geometric mean one.

    Args:
        largest: Of every degree.
        strength: Share of the unevenness that moves from activations to weights, in 0…1.
    """
    scales: Scales = {}
    for name in largest[0].inputs:
        inputs = np.max([each.inputs[name] for each in largest], axis=0)
        weights = np.max([each.weights[name] for each in largest], axis=0)
        scale = np.maximum(inputs, _TINY) ** strength / np.maximum(weights, _TINY) ** (1 - strength)
        scales[name] = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
    return scales


def equalized(model: onnx.ModelProto, scales: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """Return a copy of a float32 model, with its weights loaded, that computes the same from even channels."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in copied.graph.initializer}

    def multiply(name: str, factor: NDArray[Any]) -> None:
        values = numpy_helper.to_array(constants[name]) * factor
        constants[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))

    for name, group in _groups(copied.graph).items():
        for each in group.made_by:
            multiply(each, 1 / scales[name])
        for each in group.weights:
            multiply(each, scales[name][:, None])
    return copied


@dataclass(frozen=True)
class _Group:
    """Layers of one input, and the constants whose last dimension is the channels of that input."""

    input: str
    weights: tuple[str, ...]
    made_by: tuple[str, ...]


class _Graph:
    """Producers and users by name of the tensor."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = {value.name: [onnx.NodeProto()] for value in graph.output}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def is_used_once(self, name: str) -> bool:
        return len(self.users.get(name, ())) == 1


def _groups(proto: onnx.GraphProto) -> dict[str, _Group]:
    """Return the groups that equalization can reach, by name."""
    graph = _Graph(proto)
    layers: dict[str, list[str]] = {}
    inputs = {}
    for layer in quantizable_layers(proto):
        layers.setdefault(layer.group, []).append(layer.weight)
        inputs[layer.group] = layer.input
    found = {}
    for name, weights in layers.items():
        made_by = _made_by(graph, inputs[name], len(weights))
        own = [*weights, *made_by]
        # A constant that something else uses too cannot be changed for this group alone.
        fits = all(graph.users[each][0].op_type == "MatMul" for each in weights)
        fits &= (
            len({*(graph.constants[w].dims[0] for w in weights), *(graph.constants[m].dims[-1] for m in made_by)}) == 1
        )
        if made_by and fits and all(graph.is_used_once(each) for each in own):
            found[name] = _Group(inputs[name], tuple(weights), made_by)
    return found


def _made_by(graph: _Graph, name: str, users: int) -> tuple[str, ...]:
    """Return the constants that scale a tensor's channels, or none where it is not made by such."""
    producer = graph.producers.get(name)
    if producer is None or len(graph.users[name]) != users:
        return ()
    if producer.op_type == "LayerNormalization" and not producer.domain:
        constants = tuple(each for each in producer.input[1:] if each)
        return constants if all(each in graph.constants for each in constants) else ()
    return _values_of_attention(graph, name)


def _values_of_attention(graph: _Graph, name: str) -> tuple[str, ...]:
    """Return weight and bias of v, where a tensor is attention·v brought back to [batch, tokens, channels]."""
    product = _back(graph, name)
    if product is None or product.op_type != "MatMul" or product.input[1] in graph.constants:
        return ()
    node = _back(graph, product.input[1])
    found: tuple[str, ...] = ()
    if node is not None and node.op_type == "Add":
        bias = [each for each in node.input if each in graph.constants]
        rest = [each for each in node.input if each not in graph.constants]
        if len(bias) != 1 or len(graph.constants[bias[0]].dims) != 1:
            return ()
        found, node = (bias[0],), _back(graph, rest[0])
    if node is None or node.op_type != "MatMul" or node.input[1] not in graph.constants:
        return ()
    return (node.input[1], *found)


def _back(graph: _Graph, name: str) -> onnx.NodeProto | None:
    """Return the node that makes a tensor, past those that only move values; None where others use it on the way."""
    while graph.is_used_once(name) and name in graph.producers:
        node: onnx.NodeProto = graph.producers[name]
        if node.op_type not in _ON_THE_WAY_TO_V:
            return node
        name = node.input[0]
    return None

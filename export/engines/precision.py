"""Float32 where a half-precision network answers wrongly: casts put into a strongly typed network after parsing.

Types follow from a network's inputs, constants and casts, so nothing else is to be changed.
"""

from __future__ import annotations

from typing import Any

__all__ = ["widen_network"]

_FRAGILE = ("NORMALIZATION", "SOFTMAX")
_HALF = ("HALF", "BF16")


def widen_network(trt: Any, network: Any, which: str) -> int:
    """Compute in float32 what is ``fragile`` (layer norm, softmax, residual sums) or ``all``; return the casts added.

    Args:
        trt: TensorRT's module.
        network: A strongly typed network in half precision; changed in place.
        which: ``fragile`` or ``all``.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    readers = _readers(layers)
    # Before anything changes: types follow from one layer to the next.
    halves = {layer.name: layer.get_output(0).dtype for layer in layers if layer.get_output(0).dtype.name in _HALF}
    added = 0
    for layer in layers:
        kind = layer.type.name
        if which == "all":
            half = halves.get(layer.name)
            if half is None:
                continue
            if kind == "CAST":
                layer.__class__ = trt.ICastLayer  # get_layer returns the base class
                layer.to_type = trt.float32
            elif kind == "CONSTANT":
                added += _cast_output(network, layer.get_output(0), trt.float32, readers)
            elif kind == "CONVOLUTION":
                # The patch embedding holds its weights itself, in half precision: it stays, between casts.
                layer.set_input(0, network.add_cast(layer.get_input(0), half).get_output(0))
                added += 1 + _cast_output(network, layer.get_output(0), trt.float32, readers)
        elif kind in _FRAGILE or _is_residual_sum(trt, layer):
            half = layer.get_output(0).dtype
            if half.name not in _HALF:
                continue
            for index in range(layer.num_inputs):
                tensor = layer.get_input(index)
                if tensor is not None and tensor.dtype == half:
                    layer.set_input(index, network.add_cast(tensor, trt.float32).get_output(0))
                    added += 1
            added += _cast_output(network, layer.get_output(0), half, readers)
    return added


def _is_residual_sum(trt: Any, layer: Any) -> bool:
    """Return whether a layer adds two activations of three dimensions: tokens to tokens, not a bias."""
    if layer.type.name != "ELEMENTWISE":
        return False
    layer.__class__ = trt.IElementWiseLayer
    shapes = [tuple(layer.get_input(index).shape) for index in range(layer.num_inputs)]
    return bool(layer.op == trt.ElementWiseOperation.SUM and len(shapes[0]) == 3 and shapes[0][1:] == shapes[1][1:])


def _readers(layers: list[Any]) -> dict[str, list[tuple[Any, int]]]:
    """Return, by a tensor's name, the layers that read it and the index of that input."""
    readers: dict[str, list[tuple[Any, int]]] = {}
    for layer in layers:
        for index in range(layer.num_inputs):
            tensor = layer.get_input(index)
            if tensor is not None:
                readers.setdefault(tensor.name, []).append((layer, index))
    return readers


def _cast_output(network: Any, tensor: Any, dtype: Any, readers: dict[str, list[tuple[Any, int]]]) -> int:
    """Let everyone who reads a tensor read it in another type."""
    cast = network.add_cast(tensor, dtype).get_output(0)
    found = readers.get(tensor.name, [])
    for reader, index in found:
        reader.set_input(index, cast)
    # Whoever reads it later finds the cast's readers under the cast's name.
    readers[cast.name] = found
    return 1

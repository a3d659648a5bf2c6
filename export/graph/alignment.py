"""What an alignment changes in a graph: the head's layer, or a product before it where features are an output."""

from __future__ import annotations

import numpy as np
import onnx
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tocom.alignment.alignment import AlignedDropout, Alignment, aligned_head
from tocom.compression.blocks import replace_child
from tocom.export.graph.projections import to_onnx
from tocom.formats.device_alignment import Linear

__all__ = ["HEAD", "Placement"]

HEAD = ("head.weight", "head.bias")
_MAP = ("head_drop.matrix", "head_drop.offset")


class Placement:
    """Where the maps of an alignment go in the graphs of a bundle.

    Args:
        model: Dense.
        alignment: Fitted on it; None changes nothing.
        degrees: Degrees of the bundle.
        features: Whether features are an output beside the logits.

    Attributes:
        is_folded: The map goes into the head's layer: at no cost, but the features are not seen.
        names: Names of the initializers that differ by degree.
        mapped: Degrees with a map of their own, not the identity.
    """

    def __init__(
        self, model: VisionTransformer, alignment: Alignment | None, degrees: list[int], *, features: bool
    ) -> None:
        self._model, self._alignment = model, alignment
        self.is_folded = not features and isinstance(model.head, nn.Linear) and model.head.bias is not None
        self.names = () if alignment is None else HEAD if self.is_folded else _MAP
        self.mapped = {degree for degree in degrees if alignment is not None and alignment.at(degree) is not None}

    def has_layer(self, *, compressed: bool) -> bool:
        """Return whether graphs of this kind hold a product for the map: where a degree of it is mapped."""
        return not self.is_folded and any((degree > 0) == compressed for degree in self.mapped)

    def traced(self, *, compressed: bool) -> nn.Module:
        """Return the model to trace, dense or compressed: with a layer for a map if a degree of it needs one."""
        model = self._model
        if not self.has_layer(compressed=compressed):
            return model
        # Random numbers, so that the exporter neither shares them nor folds them away.
        generator, channels = np.random.default_rng(0), model.num_features
        numbers = generator.standard_normal((channels + 1, channels), np.float32)
        layer = AlignedDropout(Linear(numbers[1:], numbers[0]), channels, model.head_drop)
        return replace_child(model, "head_drop", layer.eval())

    def weights(self, graph: onnx.GraphProto, degree: int, *, precision: str) -> dict[str, onnx.TensorProto]:
        """Return the initializers of a degree's graph that the alignment changes: made in float32, then cast."""
        if self._alignment is None:
            return {}
        found, model = self._alignment.at(degree), self._model
        if self.is_folded:
            values = aligned_head(model.head, found)
        else:
            layer = AlignedDropout(found, model.num_features, model.head_drop)
            values = layer.matrix, layer.offset
        held = {tensor.name for tensor in graph.initializer}
        # The dense graph has no layer for a map where the source degree is 0.
        return {
            name: to_onnx(value, name, precision)
            for name, value in zip(self.names, values, strict=True)
            if name in held or degree in self.mapped
        }

    def macs(self, degree: int) -> int:
        """Return the multiply-accumulates that the map adds to one image."""
        return 0 if self.is_folded or degree not in self.mapped else self._model.num_features**2

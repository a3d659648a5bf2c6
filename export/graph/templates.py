"""The traced graphs that every degree of an export is made from; exports of one model may share them."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import onnx
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tocom.compensator.compensator import model_sha256
from tocom.compression.blocks import replace_child
from tocom.export.graph.alignment import HEAD, Placement
from tocom.export.graph.projections import to_onnx
from tocom.export.graph.retarget import make_retargetable
from tocom.export.graph.trace import Tracing, projection_name, trace
from tocom.formats.families import EVERY
from tocom.formats.weights import WeightStore

__all__ = ["Templates", "put_shared"]

_PLAIN = (bool, int, float, str, tuple)


class Templates:
    """Graphs of one model by how they were traced.

    Tracing takes most of an export's time. Exports that are handed the same object trace once: with and without a
    compensator, at other degrees, behind another head of the same shape.
    """

    def __init__(self) -> None:
        self._traced: dict[tuple[object, ...], onnx.ModelProto] = {}

    def make(self, model: VisionTransformer, placement: Placement, how: Tracing) -> onnx.ModelProto:
        """Return a graph of the caller's own, dense or compressed.

        Args:
            model: Dense.
            placement: Where the alignment goes in it.
            how: See :class:`tocom.export.graph.trace.Tracing`.

        Raises:
            ExportError: torch cannot trace the model.
        """
        aligned = placement.has_layer(compressed=how.compressed)
        if not how.compressed:  # which tokens would go, and how, changes nothing
            how = replace(how, method="merge", family=EVERY, fuse=False)
        key = (model_sha256(model, without="head."), _build(model), aligned, how)
        if key not in self._traced:
            self._traced[key] = trace(_with_random_head(placement.traced(compressed=how.compressed)), how)
            make_retargetable(self._traced[key])
        graph = onnx.ModelProto()
        graph.CopyFrom(self._traced[key])
        for tensor in graph.graph.initializer:
            if tensor.name in HEAD:
                tensor.CopyFrom(to_onnx(model.get_parameter(tensor.name).detach(), tensor.name, how.precision))
        return graph


def _build(model: nn.Module) -> str:
    """Return what a graph has from a model beside its weights.

    That is its modules with their numbers and switches, and the tables that no state dict holds: those of positions.
    """
    modules = [
        (name, type(module).__name__, [item for item in vars(module).items() if isinstance(item[1], _PLAIN)])
        for name, module in model.named_modules()
    ]
    saved = model.state_dict().keys()
    return repr((modules, [table.tolist() for name, table in model.named_buffers() if name not in saved]))


def _with_random_head(model: Any) -> Any:
    """Return a twin whose classifier the exporter neither shares nor folds away; its real values are put in later."""
    if not isinstance(model.head, nn.Linear):
        return model
    head = copy.deepcopy(model.head)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in head.parameters():
            values.copy_(torch.rand(values.shape, generator=generator))
    return replace_child(model, "head", head)


def put_shared(
    template: onnx.ModelProto, store: WeightStore, model: VisionTransformer, *, changing: Collection[str]
) -> None:
    """Move a template's weights into the bundle's, except those that differ by degree: these are emptied."""
    projections = {projection_name(index, name, "weight") for index in range(len(model.blocks)) for name in "qv"}
    for tensor in template.graph.initializer:
        if tensor.name in projections or tensor.name in changing:
            tensor.ClearField("raw_data")
        else:
            store.take(tensor)

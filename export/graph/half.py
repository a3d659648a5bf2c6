"""Half precision that does not overflow: what comes too near to its largest number is measured, and kept wide.

Half precision ends at 65,504, and sums on a device overflow earlier than on the machine that exports. So the largest
magnitude of each kind of tensor is measured on the check images in float32, and what comes within a factor of eight of
the end is kept in float32, or scaled down by a power of two where that is exact.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tocom.compression.attention import layers, parts
from tocom.compression.blocks import is_post_norm, layer_scale

__all__ = ["LIMIT", "HalfPlan", "Kept", "magnitudes", "plan_half", "widen"]

_END = 65504.0
LIMIT = _END / 8
_RESIDUAL, _SQUARES, _ATTENTION, _MLP = "residual sum", "layer norm's squares", "attention's q, k and logits", "MLP"
_ATTENTION_OUT, _MLP_OUT = "attention's output", "MLP's output"

Magnitudes = dict[tuple[int, str], float]


@dataclass(frozen=True)
class Kept:
    """One kind of tensor of one block that half precision could not hold.

    Attributes:
        block: The block; the number of blocks for the model's last layer norm.
        what: The kind of tensor.
        largest: Magnitude that it reached on the check images.
        how: What was done about it.
    """

    block: int
    what: str
    largest: float
    how: str


@dataclass(frozen=True)
class HalfPlan:
    """What stays wide in a half-precision graph; false where nothing does.

    Residual sums and layer norms are in float32 in all blocks as soon as anything is.

    Attributes:
        kept: Why, block by block.
        attention: Blocks whose attention is in float32.
        mlp: Blocks whose MLP is in float32.
        scales: Per block and layer (``proj`` or ``fc2``) what its weights are divided by, a power of two.
    """

    kept: tuple[Kept, ...] = ()
    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()
    scales: tuple[tuple[int, str, float], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.kept)


def magnitudes(model: VisionTransformer, images: np.ndarray) -> Magnitudes:
    """Return the largest magnitude of each kind of tensor in each block, over the images.

    Args:
        model: Dense or compressed, float32.
        images: [count, channels, height, width].
    """
    found: Magnitudes = {}
    with _watching(model, found), torch.no_grad():
        model(torch.from_numpy(images))
    return found


def plan_half(measured: Iterable[Magnitudes], model: VisionTransformer) -> HalfPlan:
    """Return what must stay wide, from the magnitudes at the lowest and the highest degree."""
    largest: Magnitudes = {}
    for each in measured:
        for key, value in each.items():
            largest[key] = max(value, largest.get(key, 0.0))
    post_norm = any(is_post_norm(block) for block in model.blocks)
    attention: set[int] = set()
    mlp: set[int] = set()
    kept, scales = [], []
    for (block, what), value in sorted(largest.items()):
        if value < LIMIT:
            continue
        how = "residual sums and layer norms are in float32"
        if what in (_ATTENTION, _MLP):
            (attention if what == _ATTENTION else mlp).add(block)
            how = f"the {'attention' if what == _ATTENTION else 'MLP'} is in float32"
        elif what in (_ATTENTION_OUT, _MLP_OUT):
            layer = "proj" if what == _ATTENTION_OUT else "fc2"
            if hasattr(model.blocks[block].attn if layer == "proj" else model.blocks[block].mlp, layer):
                scale = 2.0 ** math.ceil(math.log2(value / LIMIT))
                scales.append((block, layer, scale))
                how = f"its last layer is scaled by 1/{scale:g}, and back in float32"
            else:
                mlp.add(block)
                how = "the MLP is in float32"
        kept.append(Kept(block, what, float(value), how))
    if kept and post_norm:
        # There the branches read the residual sum itself.
        attention = mlp = set(range(len(model.blocks)))
    return HalfPlan(tuple(kept), frozenset(attention), frozenset(mlp), tuple(scales))


def widen(half: nn.Module, model: nn.Module, plan: HalfPlan) -> None:
    """Put float32 layers into a half-precision copy of a model, as the plan says.

    Args:
        half: The copy; changed in place.
        model: The float32 model, its blocks prepared for tracing.
        plan: What stays wide.
    """
    scales = {(block, layer): scale for block, layer, scale in plan.scales}
    for index, (mine, theirs) in enumerate(zip(_blocks(half), _blocks(model), strict=True)):
        post_norm = is_post_norm(theirs)
        if index in plan.attention:
            mine.attn = copy.deepcopy(theirs.attn)
        else:
            mine.attn.proj = _Scaled(theirs.attn.proj, scales.get((index, "proj"), 1.0))
        if index in plan.mlp:
            mine.mlp = copy.deepcopy(theirs.mlp)
        elif (index, "fc2") in scales:
            mine.mlp.fc2 = _Scaled(theirs.mlp.fc2, scales[index, "fc2"])
        else:
            mine.mlp = _Wide(mine.mlp)
        for name, is_wide in (("norm1", index in plan.attention), ("norm2", index in plan.mlp)):
            setattr(mine, name, _Norm(getattr(theirs, name), torch.float32 if is_wide or post_norm else torch.float16))
    for name in ("norm", "fc_norm"):
        if not isinstance(getattr(model, name), nn.Identity):
            setattr(half, name, _Norm(getattr(model, name), torch.float16))


class _Norm(nn.Module):
    """A layer norm in float32, whatever it reads, that writes one type."""

    def __init__(self, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.dtype = copy.deepcopy(norm), dtype

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(x.float())
        return normalised.to(self.dtype)


class _Wide(nn.Module):
    """Layers in half precision that write float32."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        narrow: Tensor = self.layers(x)
        return narrow.float()


class _Scaled(nn.Module):
    """A linear layer in half precision, its weights divided by a power of two, that writes what it would in float32."""

    def __init__(self, layer: nn.Linear, scale: float) -> None:
        super().__init__()
        self.layer, self.scale = copy.deepcopy(layer), scale
        with torch.no_grad():
            for weight in self.layer.parameters():
                weight.copy_(weight / scale)
        self.layer.half()

    def forward(self, x: Tensor) -> Tensor:
        narrow: Tensor = self.layer(x)
        wide = narrow.float()
        return wide if self.scale == 1 else wide * self.scale


def _blocks(model: Any) -> list[Any]:
    return [model.blocks[index] for index in range(len(model.blocks))]  # compressed blocks refuse to be iterated


@contextmanager
def _watching(model: VisionTransformer, found: Magnitudes) -> Iterator[None]:
    def note(block: int, what: str, value: Tensor) -> None:
        found[block, what] = max(found.get((block, what), 0.0), float(value.abs().max()))

    def on_norm(block: int) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            note(block, _RESIDUAL, inputs[0])
            note(block, _SQUARES, inputs[0].var(dim=-1, unbiased=False))

        return hook

    def on_read(block: int, attention: Any) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # Computed once more from what the layers read: they are one or three, with biases of their own or without.
            shape = (*inputs[0].shape[:2], attention.num_heads, attention.head_dim)
            q, k, v = (
                nn.functional.linear(inputs[0], *part).reshape(shape).transpose(1, 2)
                for part in parts(attention).values()
            )
            q, k = attention.q_norm(q), attention.k_norm(k)
            for part in (q, k, v):
                note(block, _ATTENTION, part)
            scaled = q * attention.scale
            if not is_rotary:
                note(block, _ATTENTION, scaled @ k.transpose(-1, -2))
                return
            # Turned or not, no logit is larger than the product of the lengths; and no channel than a pair's.
            note(block, _ATTENTION, scaled.norm(dim=-1).max() * k.norm(dim=-1).max())
            for part in (q, k):
                note(block, _ATTENTION, part * 2**0.5)

        return hook

    def on_output(block: int, what: str, scale: Tensor | None = None) -> Any:
        return lambda _, __, output: note(block, what, output if scale is None else scale * output)

    blocks, is_rotary = _blocks(model), getattr(model, "rope", None) is not None
    hooks = []
    for index, block in enumerate(blocks):
        hooks += [each.register_forward_pre_hook(on_norm(index)) for each in (block.norm1, block.norm2)]
        # A dense EVA reads its layer's weight alone; compressed blocks run the layers, not the attention.
        for reads in (block.attn, next(iter(layers(block.attn).values()))):
            hooks.append(reads.register_forward_pre_hook(on_read(index, block.attn)))
        last = {block.mlp.fc2} if hasattr(block.mlp, "fc2") else set()
        for layer in block.mlp.modules():
            if not list(layer.children()) and layer not in last:
                hooks.append(layer.register_forward_hook(on_output(index, _MLP)))
        for branch, what, part in ((1, _ATTENTION_OUT, block.attn), (2, _MLP_OUT, block.mlp)):
            ends = part.proj_drop if branch == 1 else part
            hooks.append(ends.register_forward_hook(on_output(index, what, layer_scale(block, branch))))
    last_norm = model.norm if not isinstance(model.norm, nn.Identity) else model.fc_norm
    hooks.append(last_norm.register_forward_pre_hook(on_norm(len(blocks))))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

"""Multiply-accumulates of a model at a degree, counted from its layers."""

from __future__ import annotations

from collections.abc import Sequence

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tocom.compensator.low_rank import attention_channels
from tocom.compression.surgery import input_tokens
from tocom.compression.tokens import token_counts

__all__ = ["count_macs"]


def count_macs(model: VisionTransformer, removed: Sequence[int], *, method: str = "merge") -> int:
    """Return the multiply-accumulates of one image.

    Counts matrix products alone, as the field does: projections, attention, MLP, patch embedding, head, and what
    the compression adds (matching for ``merge``, the class token's attention for ``prune``).

    Args:
        model: A dense, supported model.
        removed: Tokens that each block removes.
        method: ``merge`` or ``prune``.
    """
    prefix = model.num_prefix_tokens
    counts = token_counts(input_tokens(model), removed)
    total = model.patch_embed.proj.weight.numel() * int(model.patch_embed.num_patches)
    for block, entering, leaving in zip(model.blocks, counts[:-1], counts[1:], strict=True):
        attention, width = block.attn, attention_channels(block.attn)
        total += entering * _per_token(attention) + 2 * entering**2 * width
        total += leaving * _per_token(block.mlp)
        if entering == leaving:
            continue
        if method == "merge":
            half = (entering - prefix) // 2
            total += half * (entering - prefix - half) * attention.head_dim
        else:
            total += (1 if prefix else entering) * entering * width
    return total + _per_token(model.head)


def _per_token(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))

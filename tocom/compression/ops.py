"""The ops ``tocom::token_merge``, ``tocom::token_prune`` and ``tocom::gather_tokens`` of torch's library.

They compute what :mod:`tocom.compression.merging` and :mod:`tocom.compression.pruning` compute. As ops they stay whole
when a model is traced, so that the ONNX export can put one node in their place. They are for that alone, so they have
shape functions and no gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tocom.compression import merging, pruning

__all__ = ["gather_tokens", "token_merge_mapped", "token_prune_mapped"]


@torch.library.custom_op("tocom::token_merge", mutates_args=())
def token_merge_mapped(
    x: Tensor, keys: Tensor, size: Tensor, r: int, prefix: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge tokens: see :func:`tocom.compression.merging.token_merge_mapped`."""
    return merging.token_merge_mapped(x, keys, size, r, prefix)


@token_merge_mapped.register_fake
def _(x: Tensor, keys: Tensor, size: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, channels = x.shape
    left = tokens - r
    merged = x.new_empty(batch, left, channels), size.new_empty(batch, left, 1), x.new_empty(batch, 1, 1, left)
    return *merged, x.new_empty(batch, tokens, dtype=torch.int32)


@torch.library.custom_op("tocom::token_prune", mutates_args=())
def token_prune_mapped(x: Tensor, score: Tensor, r: int, prefix: int, fuse: bool) -> tuple[Tensor, Tensor]:
    """Prune tokens: see :func:`tocom.compression.pruning.token_prune_mapped`."""
    return pruning.token_prune_mapped(x, score, r, prefix, fuse)


@token_prune_mapped.register_fake
def _(x: Tensor, score: Tensor, r: int, prefix: int, fuse: bool) -> tuple[Tensor, Tensor]:
    batch, tokens, channels = x.shape
    return x.new_empty(batch, tokens - r, channels), x.new_empty(batch, tokens, dtype=torch.int32)


@torch.library.custom_op("tocom::gather_tokens", mutates_args=())
def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Return tokens by index: see :func:`tocom.compression.merging.gather_tokens`."""
    return merging.gather_tokens(x, index)


@gather_tokens.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], index.shape[1], x.shape[2])

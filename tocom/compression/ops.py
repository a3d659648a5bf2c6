"""The ops ``tocom::token_merge``, ``tocom::token_prune`` and their like of torch's library.

They compute what :mod:`tocom.compression.merging` and :mod:`tocom.compression.pruning` compute; as ops they stay
whole when a model is traced, so that the ONNX export can put one node in their place. Both have shape functions and
gradients.

Those that end in ``mapped`` say as well where every token went. They are for export alone and have no gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tocom.compression.merging import gather_tokens as _gather_tokens
from tocom.compression.merging import key_metric, match_tokens
from tocom.compression.merging import token_merge as _token_merge
from tocom.compression.merging import token_merge_mapped as _token_merge_mapped
from tocom.compression.pruning import token_prune as _token_prune
from tocom.compression.pruning import token_prune_mapped as _token_prune_mapped

__all__ = ["gather_tokens", "token_merge", "token_merge_mapped", "token_prune", "token_prune_mapped"]


@torch.library.custom_op("tocom::token_merge", mutates_args=())
def token_merge(x: Tensor, keys: Tensor, size: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge tokens: see :func:`tocom.compression.merging.token_merge`."""
    return _token_merge(x, keys, size, r, prefix)


@token_merge.register_fake
def _(x: Tensor, keys: Tensor, size: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, channels = x.shape
    left = tokens - r
    return x.new_empty(batch, left, channels), size.new_empty(batch, left, 1), x.new_empty(batch, 1, 1, left)


def _merge_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, keys, size, r, prefix = inputs
    del x, output
    ctx.save_for_backward(keys, size)
    ctx.r, ctx.prefix = r, prefix


def _merge_backward(ctx: Any, grad_y: Tensor, grad_size: Tensor, grad_log: Tensor) -> tuple[Any, ...]:
    # The choice of pairs has no gradient; the mean's is its weights, and sizes are counts, never learned.
    del grad_size, grad_log
    keys, size = ctx.saved_tensors
    destination = match_tokens(key_metric(keys), ctx.r, ctx.prefix)
    new_size = size.new_zeros(size.shape[0], grad_y.shape[1], 1).scatter_add(1, destination.unsqueeze(-1), size)
    weight = size / _gather_tokens(new_size, destination)
    grad_x = _gather_tokens(grad_y, destination) * weight.to(grad_y.dtype)
    return grad_x, None, None, None, None


token_merge.register_autograd(_merge_backward, setup_context=_merge_context)


@torch.library.custom_op("tocom::token_prune", mutates_args=())
def token_prune(x: Tensor, score: Tensor, r: int, prefix: int, fuse: bool) -> Tensor:
    """Prune tokens: see :func:`tocom.compression.pruning.token_prune`."""
    # An op may not return its input, which is what the function does when there is nothing to remove.
    return _token_prune(x, score, r, prefix, fuse) if r else x.clone()


@token_prune.register_fake
def _(x: Tensor, score: Tensor, r: int, prefix: int, fuse: bool) -> Tensor:
    batch, tokens, channels = x.shape
    return x.new_empty(batch, tokens - r, channels)


def _prune_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, score, r, prefix, fuse = inputs
    ctx.save_for_backward(x, score)
    ctx.r, ctx.prefix, ctx.fuse = r, prefix, fuse


def _prune_backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    x, score = ctx.saved_tensors
    with torch.enable_grad():
        x, score = x.detach().requires_grad_(), score.detach().requires_grad_()
        y = _token_prune(x, score, ctx.r, ctx.prefix, ctx.fuse)
    grad_x, grad_score = torch.autograd.grad(y, (x, score), grad_y, allow_unused=True)
    return grad_x, grad_score, None, None, None


token_prune.register_autograd(_prune_backward, setup_context=_prune_context)


@torch.library.custom_op("tocom::token_merge_mapped", mutates_args=())
def token_merge_mapped(
    x: Tensor, keys: Tensor, size: Tensor, r: int, prefix: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge tokens: see :func:`tocom.compression.merging.token_merge_mapped`."""
    return _token_merge_mapped(x, keys, size, r, prefix)


@token_merge_mapped.register_fake
def _(x: Tensor, keys: Tensor, size: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, channels = x.shape
    left = tokens - r
    merged = x.new_empty(batch, left, channels), size.new_empty(batch, left, 1), x.new_empty(batch, 1, 1, left)
    return *merged, x.new_empty(batch, tokens, dtype=torch.int32)


@torch.library.custom_op("tocom::token_prune_mapped", mutates_args=())
def token_prune_mapped(x: Tensor, score: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Prune and fuse tokens: see :func:`tocom.compression.pruning.token_prune_mapped`."""
    return _token_prune_mapped(x, score, r, prefix)


@token_prune_mapped.register_fake
def _(x: Tensor, score: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor]:
    batch, tokens, channels = x.shape
    return x.new_empty(batch, tokens - r, channels), x.new_empty(batch, tokens, dtype=torch.int32)


@torch.library.custom_op("tocom::gather_tokens", mutates_args=())
def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Return tokens by index: see :func:`tocom.compression.merging.gather_tokens`."""
    return _gather_tokens(x, index)


@gather_tokens.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], index.shape[1], x.shape[2])

"""Token merging as pure tensor functions.

Source: ToMe, arXiv 2210.09461, section 3 and appendix D. Written from the paper: bipartite matching of the tokens at
even positions (A) with those at odd positions (B), the ``r`` best matched A tokens merged into their B tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tocom.compression.tokens import removable
from tocom.errors import DegreeError

__all__ = ["gather_tokens", "key_metric", "match_tokens", "merge_tokens", "token_merge", "token_merge_mapped"]

NORM_EPSILON = 1e-12


def key_metric(keys: Tensor) -> Tensor:
    """Return what tokens are compared by: their keys, averaged over heads in at least float32.

    Args:
        keys: [batch, heads, tokens, head_channels].

    Returns:
        [batch, tokens, head_channels].
    """
    return keys.to(torch.promote_types(keys.dtype, torch.float32)).mean(dim=1)


def match_tokens(metric: Tensor, r: int, prefix: int) -> Tensor:
    """Return where every token goes when the ``r`` most similar pairs merge.

    Ties are broken by index, so the result is a function of the scores alone: an A token takes the lowest of equally
    similar B tokens, and of equally well matched A tokens the lowest merges first.

    Args:
        metric: [batch, tokens, channels]; similarity is the cosine, computed in at least float32.
        r: Tokens to remove, 0 … ``(tokens - prefix) // 2``.
        prefix: Leading tokens that neither merge nor are merged into.

    Returns:
        [batch, tokens], int64: each token's position among the ``tokens - r`` outputs. Outputs stand in the order
        prefix, unmerged A ascending, B ascending.

    Raises:
        DegreeError: ``r`` is out of range.
    """
    batch, tokens, _ = metric.shape
    check_count("r", r, tokens, prefix)
    first_a, first_b = prefix + prefix % 2, prefix + 1 - prefix % 2
    wide = metric.to(torch.promote_types(metric.dtype, torch.float32))
    unit = torch.nn.functional.normalize(wide, dim=-1, eps=NORM_EPSILON)
    a, b = unit[:, first_a::2], unit[:, first_b::2]
    count_a, count_b = a.shape[1], b.shape[1]

    destination = torch.arange(tokens, device=metric.device).expand(batch, tokens).clone()
    first_out_b = prefix + count_a - r
    destination[:, first_b::2] = torch.arange(first_out_b, first_out_b + count_b, device=metric.device)
    if r == 0:
        destination[:, first_a::2] = torch.arange(prefix, first_out_b, device=metric.device)
        return destination

    scores = a @ b.transpose(-1, -2)
    # max() promises no order among equals; argmax of the equality mask does: the first.
    best = scores.amax(dim=-1)
    partner = (scores == best.unsqueeze(-1)).to(torch.uint8).argmax(dim=-1)
    by_score = best.argsort(dim=-1, descending=True, stable=True)
    merged = torch.zeros_like(best, dtype=torch.bool).scatter(1, by_score[:, :r], True)
    unmerged_position = prefix + (~merged).cumsum(dim=-1) - 1
    destination[:, first_a::2] = torch.where(merged, first_out_b + partner, unmerged_position)
    return destination


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Return [batch, count, channels]: of x [batch, tokens, channels] by index [batch, count], of any integer type."""
    return x.gather(1, index.long().unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def merge_tokens(x: Tensor, size: Tensor, destination: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Replace the tokens that share a destination by their size-weighted mean.

    Args:
        x: [batch, tokens, channels], any float type; the mean is taken in at least float32.
        size: [batch, tokens, 1], float32: patches behind each token.
        destination: [batch, tokens], int64, from :func:`match_tokens`.
        outputs: Number of output tokens.

    Returns:
        Tokens [batch, outputs, channels] of the type of ``x``, and their sizes [batch, outputs, 1], float32.
    """
    batch, _, channels = x.shape
    index = destination.unsqueeze(-1)
    new_size = size.new_zeros(batch, outputs, 1).scatter_add(1, index, size)
    # Dividing before the sum leaves an unmerged token exactly as it was: its weight is size / size = 1.
    weighted = x * (size / new_size.gather(1, index))  # at least float32, as sizes are
    zeros = weighted.new_zeros(batch, outputs, channels)
    merged = zeros.scatter_add(1, index.expand(-1, -1, channels), weighted)
    return merged.to(x.dtype), new_size


def token_merge(x: Tensor, keys: Tensor, size: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the ``r`` most similar pairs of tokens: :func:`match_tokens`, then :func:`merge_tokens`.

    Args:
        x: [batch, tokens, channels].
        keys: [batch, heads, tokens, head_channels]: the block's keys; similarity is of their mean over heads.
        size: [batch, tokens, 1], float32.
        r: Tokens to remove.
        prefix: Protected leading tokens.

    Returns:
        Tokens [batch, tokens - r, channels], sizes [batch, tokens - r, 1], and the sizes' logarithm
        [batch, 1, 1, tokens - r] of the type of ``x``: what the next block adds to its attention logits (ToMe,
        equation 1).
    """
    y, new_size, log_size, _ = token_merge_mapped(x, keys, size, r, prefix)
    return y, new_size, log_size


def token_merge_mapped(
    x: Tensor, keys: Tensor, size: Tensor, r: int, prefix: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do what :func:`token_merge` does, and return where every token went as well: [batch, tokens], int32."""
    destination = match_tokens(key_metric(keys), r, prefix)
    y, new_size = merge_tokens(x, size, destination, x.shape[1] - r)
    return y, new_size, new_size.log().transpose(1, 2).unsqueeze(1).to(x.dtype), destination.to(torch.int32)


def check_count(name: str, r: int, tokens: int, prefix: int) -> None:
    """Raise DegreeError unless a block of ``tokens`` tokens can remove ``r``."""
    cap = removable(tokens, prefix)
    if not 0 <= r <= cap:
        raise DegreeError(
            f"The {name!r} parameter must be from 0 to {cap} for {tokens} tokens with {prefix} protected. "
            f"Got {r!r} instead."
        )

"""Token pruning as pure tensor functions.

Source: EViT, arXiv 2202.07800, section 3: tokens that the class token attends to least are removed, or fused into one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tocom.compression.merging import check_count, gather_tokens

__all__ = ["attention_score", "token_prune", "token_prune_mapped"]


def attention_score(q: Tensor, k: Tensor, prefix: int) -> Tensor:
    """Return how much each token is attended to, averaged over heads.

    Args:
        q: Queries [batch, heads, tokens, head_channels], already scaled.
        k: Keys [batch, heads, tokens, head_channels].
        prefix: Protected leading tokens; with at least one, the first is the class token.

    Returns:
        [batch, tokens], at least float32: the class token's attention to each token (EViT, equation 2), or, without a
        class token, the mean attention that each token receives.
    """
    queries = q[:, :, :1] if prefix else q
    logits = queries @ k.transpose(-1, -2)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1).mean(dim=(1, 2))


def token_prune(x: Tensor, score: Tensor, r: int, prefix: int, fuse: bool) -> Tensor:
    """Remove the lowest-scoring tokens; of equal ones the first goes first.

    Args:
        x: [batch, tokens, channels].
        score: [batch, tokens], float32, not negative; what stands for the prefix is ignored.
        r: Tokens to lose, 0 … ``(tokens - prefix) // 2``.
        prefix: Protected leading tokens.
        fuse: Remove ``r + 1`` and append their score-weighted mean (EViT, equation 3), so that the count is the same.

    Returns:
        [batch, tokens - r, channels]: prefix, kept tokens in their order, and last the fused one.

    Raises:
        DegreeError: ``r`` is out of range.
    """
    check_count("r", r, x.shape[1], prefix)
    return x if r == 0 else token_prune_mapped(x, score, r, prefix, fuse)[0]


def token_prune_mapped(x: Tensor, score: Tensor, r: int, prefix: int, fuse: bool) -> tuple[Tensor, Tensor]:
    """Do what :func:`token_prune` does, for ``r`` of 1 or more, and return where every token went as well.

    That is [batch, tokens], int32. Those that were removed went to the fused token, the last; without ``fuse`` what is
    said of them means nothing.
    """
    batch = len(x)
    removed = r + 1 if fuse else r
    order = prefix + score[:, prefix:].argsort(dim=-1, stable=True)
    dropped = order[:, :removed]
    kept = order[:, removed:].sort(dim=-1).values
    prefix_index = torch.arange(prefix, device=x.device).expand(batch, prefix)
    index = torch.cat([prefix_index, kept], dim=1)
    survivors = gather_tokens(x, index)
    destination = torch.full(score.shape, x.shape[1] - r - 1, dtype=torch.int32, device=x.device)
    rows = torch.arange(index.shape[1], dtype=torch.int32, device=x.device).expand_as(index)
    destination = destination.scatter(1, index, rows)
    if not fuse:
        return survivors, destination
    weight = score.gather(1, dropped)
    total = weight.sum(dim=-1, keepdim=True)
    weight = torch.where(total > 0, weight / total, 1.0 / removed)
    parts = gather_tokens(x, dropped)
    parts = parts.to(torch.promote_types(x.dtype, torch.float32))
    fused = (weight.unsqueeze(-1) * parts).sum(dim=1, keepdim=True)
    return torch.cat([survivors, fused.to(x.dtype)], dim=1), destination

"""Token counts per block: plain integers, shared by torch, ONNX, TensorRT and the reports.

Sources: ToMe, arXiv 2210.09461, section 3 (constant schedule); EViT, arXiv 2202.07800 (pruning at the same counts).
"""

from __future__ import annotations

from collections.abc import Sequence

from tocom.errors import DegreeError

__all__ = ["METHODS", "check_method", "removable", "removal_schedule", "token_counts"]

METHODS = ("merge", "prune")


def check_method(method: str) -> str:
    """Return ``method``, or raise DegreeError when it is no method."""
    if method not in METHODS:
        raise DegreeError(f"The 'method' parameter must be one of {', '.join(METHODS)}. Got {method!r} instead.")
    return method


def removable(tokens: int, prefix: int) -> int:
    """Return the most tokens that one block can remove: half of the unprotected ones.

    Args:
        tokens: Tokens entering the block, the prefix included.
        prefix: Protected leading tokens (class, distillation, registers).
    """
    return max(tokens - prefix, 0) // 2


def removal_schedule(tokens: int, depth: int, degree: int, prefix: int) -> tuple[int, ...]:
    """Return how many tokens each block really removes at a degree (constant schedule, capped per block).

    Args:
        tokens: Tokens entering the first block.
        depth: Number of blocks.
        degree: Tokens to remove in every block; 0 is the dense model.
        prefix: Protected leading tokens.

    Raises:
        DegreeError: ``degree`` is no integer, is negative, or is more than the first block can remove.
    """
    cap = removable(tokens, prefix)
    if isinstance(degree, bool) or not isinstance(degree, int) or not 0 <= degree <= cap:
        raise DegreeError(
            f"The 'degree' parameter must be an integer from 0 to {cap} for {tokens} tokens with {prefix} protected "
            f"(a block can remove at most half of the rest). Got {degree!r} instead."
        )
    removed: list[int] = []
    for _ in range(depth):
        removed.append(min(degree, removable(tokens, prefix)))
        tokens -= removed[-1]
    return tuple(removed)


def token_counts(tokens: int, removed: Sequence[int]) -> tuple[int, ...]:
    """Return the tokens entering each block, and last those that leave the final block (``depth + 1`` numbers)."""
    counts = [tokens]
    for count in removed:
        counts.append(counts[-1] - count)
    return tuple(counts)

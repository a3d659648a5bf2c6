"""Token counts per block: plain integers, shared by torch, ONNX, TensorRT and the reports.

Sources: ToMe, arXiv 2210.09461, section 3; EViT, arXiv 2202.07800 (pruning at the same counts).
"""

from __future__ import annotations

from collections.abc import Sequence

from tocom.errors import DegreeError
from tocom.formats.families import EVERY, family_shares
from tocom.system.numbers import is_integer

__all__ = ["largest_degree", "removable", "removal_schedule", "token_counts"]


def removable(tokens: int, prefix: int) -> int:
    """Return the most tokens that one block can remove: half of the unprotected ones.

    Args:
        tokens: Tokens entering the block, the prefix included.
        prefix: Protected leading tokens (class, distillation, registers).
    """
    return max(tokens - prefix, 0) // 2


def largest_degree(tokens: int, depth: int, prefix: int, family: str = EVERY) -> int:
    """Return the largest degree of a family: what its first removing block can still take.

    Args:
        tokens: Tokens entering the first block.
        depth: Number of blocks.
        prefix: Protected leading tokens.
        family: See :mod:`tocom.formats.families`.

    Raises:
        DegreeError: It is not a family of a model with so many blocks.
    """
    return removable(tokens, prefix) // next(share for share in family_shares(family, depth) if share)


def removal_schedule(
    tokens: int, depth: int, degree: int | Sequence[int], prefix: int, family: str = EVERY
) -> tuple[int, ...]:
    """Return how many tokens each block really removes at a degree (numbers of a degree are capped per block).

    Args:
        tokens: Tokens entering the first block.
        depth: Number of blocks.
        degree: Tokens to remove per block, on average over the blocks; 0 is the dense model. Or one number per block,
            which is not capped.
        prefix: Protected leading tokens.
        family: Which blocks remove how many times the degree: see :mod:`tocom.formats.families`.

    Raises:
        DegreeError: ``degree`` is not an integer, is negative, or is more than a block can remove; a list of another
            length than the depth; an unknown family.
    """
    shares = family_shares(family, depth)
    if isinstance(degree, Sequence) and not isinstance(degree, str):
        return _per_block(tokens, depth, degree, prefix, family)
    most = largest_degree(tokens, depth, prefix, family)
    if not is_integer(degree, 0, most):
        first = next(index for index, share in enumerate(shares) if share)
        times = (
            "" if shares[first] == 1 else f", and block {first} of {family!r} takes {shares[first]} times the degree"
        )
        raise DegreeError(
            f"The 'degree' parameter must be an integer from 0 to {most} for {tokens} tokens with {prefix} protected "
            f"(a block can remove at most half of the rest{times}). Got {degree!r} instead."
        )
    removed: list[int] = []
    for share in shares:
        removed.append(min(share * degree, removable(tokens, prefix)))
        tokens -= removed[-1]
    return tuple(removed)


def _per_block(tokens: int, depth: int, counts: Sequence[int], prefix: int, family: str) -> tuple[int, ...]:
    if len(counts) != depth or family != EVERY:
        raise DegreeError(
            f"A list of degrees must have one number per block ({depth}) and no family beside it. Got {len(counts)} "
            f"numbers, family {family!r}."
        )
    for index, count in enumerate(counts):
        cap = removable(tokens, prefix)
        if not is_integer(count, 0, cap):
            raise DegreeError(
                f"Block {index} is to remove {count!r} of {tokens} tokens with {prefix} protected; it can remove 0 to "
                f"{cap}. Change its number, or those before it."
            )
        tokens -= count
    return tuple(counts)


def token_counts(tokens: int, removed: Sequence[int]) -> tuple[int, ...]:
    """Return the tokens entering each block, and last those that leave the final block (``depth + 1`` numbers)."""
    counts = [tokens]
    for count in removed:
        counts.append(counts[-1] - count)
    return tuple(counts)

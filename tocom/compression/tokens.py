"""Token counts per block: plain integers, shared by torch, ONNX, TensorRT and the reports.

Sources: ToMe, arXiv 2210.09461, section 3 (constant schedule); EViT, arXiv 2202.07800 (pruning at the same counts).
"""

from __future__ import annotations

from collections.abc import Sequence

from tocom.errors import DegreeError

__all__ = ["SCHEDULES", "removable", "removal_schedule", "token_counts"]

SCHEDULES = ("constant", "decreasing")


def removable(tokens: int, prefix: int) -> int:
    """Return the most tokens that one block can remove: half of the unprotected ones.

    Args:
        tokens: Tokens entering the block, the prefix included.
        prefix: Protected leading tokens (class, distillation, registers).
    """
    return max(tokens - prefix, 0) // 2


def removal_schedule(
    tokens: int, depth: int, degree: int | Sequence[int], prefix: int, schedule: str = "constant"
) -> tuple[int, ...]:
    """Return how many tokens each block really removes at a degree (numbers of a degree are capped per block).

    Args:
        tokens: Tokens entering the first block.
        depth: Number of blocks.
        degree: Tokens to remove in every block; 0 is the dense model. Or one number per block, which is not capped.
        prefix: Protected leading tokens.
        schedule: ``constant``, or ``decreasing``: from twice the degree in the first block to none in the last, on
            a straight line, the same number in all (ToMe, section 3).

    Raises:
        DegreeError: ``degree`` is no integer, is negative, or is more than a block can remove; a list of another
            length than the depth; an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise DegreeError(f"The 'schedule' parameter must be one of {', '.join(SCHEDULES)}. Got {schedule!r} instead.")
    if isinstance(degree, Sequence) and not isinstance(degree, str):
        return _per_block(tokens, depth, degree, prefix, schedule)
    cap = removable(tokens, prefix)
    most = cap // 2 if schedule == "decreasing" and depth > 1 else cap
    if isinstance(degree, bool) or not isinstance(degree, int) or not 0 <= degree <= most:
        half = "" if most == cap else ", and the first one removes twice the degree"
        raise DegreeError(
            f"The 'degree' parameter must be an integer from 0 to {most} for {tokens} tokens with {prefix} protected "
            f"(a block can remove at most half of the rest{half}). Got {degree!r} instead."
        )
    wanted = [degree] * depth
    if schedule == "decreasing" and depth > 1:
        first = [-(-2 * degree * (depth - 1 - index) // (depth - 1)) for index in range((depth + 1) // 2)]
        wanted = first + [2 * degree - count for count in reversed(first[: depth // 2])]
    removed: list[int] = []
    for count in wanted:
        removed.append(min(count, removable(tokens, prefix)))
        tokens -= removed[-1]
    return tuple(removed)


def _per_block(tokens: int, depth: int, counts: Sequence[int], prefix: int, schedule: str) -> tuple[int, ...]:
    if len(counts) != depth or schedule != "constant":
        raise DegreeError(
            f"A list of degrees must have one number per block ({depth}) and no other schedule. Got {len(counts)} "
            f"numbers, schedule {schedule!r}."
        )
    for index, count in enumerate(counts):
        cap = removable(tokens, prefix)
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= cap:
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

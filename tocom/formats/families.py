"""Families of schedules: which blocks remove tokens, and how many each as the degree grows.

A family is named by one text: ``every`` (each block removes ``degree`` tokens: ToMe, arXiv 2210.09461, section 3), or
``spaced:`` and the blocks that remove tokens, counted from 0. Those take over what the others would have removed:
every block's share goes to the nearest one, the earlier of two. So ``spaced:1,4,7,10`` removes ``3 · degree`` tokens in
each of its four blocks, and about as many products are left to compute as with ``every``. A compensator's groups are
steps of the degree along one family (ToCom, arXiv 2408.06798, needs no more than schedules ordered by a number).
"""

from __future__ import annotations

from collections.abc import Iterable

from tocom.errors import DegreeError
from tocom.system.numbers import is_integer

__all__ = ["EVERY", "every_nth", "family_shares", "named_family", "spaced_family"]

EVERY = "every"
_SPACED = "spaced:"


def spaced_family(merge_blocks: Iterable[int], depth: int) -> str:
    """Return the family that removes tokens in some blocks; ``every`` where they are all.

    Args:
        merge_blocks: Their numbers, from 0, in any order.
        depth: Number of blocks of the model.

    Raises:
        DegreeError: No block, one that the model does not have, or one that is named twice.
    """
    blocks = list(merge_blocks)
    if not blocks:
        raise DegreeError("A spaced family must name at least one block that removes tokens. Got none.")
    for block in blocks:
        if not is_integer(block, 0, depth - 1):
            raise DegreeError(
                f"A spaced family must name blocks of the model, which has {depth}: 0 to {depth - 1}. Got {block!r}."
            )
        if blocks.count(block) > 1:
            raise DegreeError(f"A spaced family must name a block once. Got block {block} twice.")
    return EVERY if len(blocks) == depth else _SPACED + ",".join(map(str, sorted(blocks)))


def every_nth(spacing: int, depth: int) -> str:
    """Return the family that removes tokens in the middle of every ``spacing`` blocks: 3 is 1, 4, 7, 10 of 12.

    Raises:
        DegreeError: The spacing is not from 1 (``every``) to the depth.
    """
    if not is_integer(spacing, 1, depth):
        raise DegreeError(
            f"The spacing of a family must be an integer from 1 to {depth}, the model's blocks. Got {spacing!r}."
        )
    return spaced_family(range((spacing - 1) // 2, depth, spacing), depth)


def named_family(name: str, depth: int) -> str:
    """Return the family of a name in its one spelling.

    Raises:
        DegreeError: It names no family of a model with so many blocks.
    """
    if name == EVERY:
        return EVERY
    numbers = name[len(_SPACED) :].split(",") if isinstance(name, str) and name.startswith(_SPACED) else []
    if not numbers or not all(number.isascii() and number.isdecimal() and len(number) < 7 for number in numbers):
        raise DegreeError(
            f"The 'family' parameter must be '{EVERY}', or '{_SPACED}' and block numbers, such as "
            f"'{_SPACED}1,4,7,10'. Got {name!r} instead."
        )
    return spaced_family(map(int, numbers), depth)


def family_shares(name: str, depth: int) -> tuple[int, ...]:
    """Return how many times the degree each block removes; together the depth.

    Raises:
        DegreeError: The name is of no family of a model with so many blocks.
    """
    name = named_family(name, depth)
    if name == EVERY:
        return (1,) * depth
    merging = [int(number) for number in name[len(_SPACED) :].split(",")]
    shares = [0] * depth
    for block in range(depth):
        shares[min(merging, key=lambda other: (abs(other - block), other))] += 1
    return tuple(shares)

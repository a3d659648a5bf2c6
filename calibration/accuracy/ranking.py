"""Which degree is how right, as far as the images can tell: paired tests and a monotone fit; noise ranks nothing.

A hundred images part two degrees by a point or two at random. Ranked by such shares, the dense engine is soon
"dominated" by a compressed one and never used again. Here fewer removed tokens count as more right until paired
answers say otherwise:

1. Every pair of degrees saw the same images, so only the images that one answers right and the other wrong say which
   is better: the exact test of McNemar (1947). Over all pairs the error is held at 5 % by the method of Holm (1979).
2. Degrees stand by removed tokens, except that one that is shown to be better stands first.
3. Along that order the shares are fitted without a rise (pooling adjacent violators, Ayer et al. 1955), the likeliest
   accuracies that the order allows. Equal ones are parted by a millionth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tocom.system.statistics import holm

__all__ = ["expected_accuracies", "mcnemar", "told_apart"]

_LEVEL = 0.05
_MOST_EXACT = 1000
_TIE = 1e-6


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    Args:
        first_only: Images that only the first answers right.
        second_only: Images that only the second answers right.
    """
    count, least = first_only + second_only, min(first_only, second_only)
    if count == 0:
        return 1.0
    if count > _MOST_EXACT:
        # Nothing parts the two here; the normal approximation with Edwards' (1948) correction for continuity.
        z = (abs(first_only - second_only) - 1) / math.sqrt(count)
        return min(1.0, math.erfc(max(z, 0.0) / math.sqrt(2)))
    return min(1.0, 2.0 * sum(math.comb(count, k) for k in range(least + 1)) / 2.0**count)


def told_apart(right: Mapping[int, NDArray[np.bool_]], level: float = _LEVEL) -> set[tuple[int, int]]:
    """Return the pairs (better, worse) of degrees that the images tell apart.

    Args:
        right: Per degree whether each image was answered right; the same images in the same order.
        level: Most chance that any pair at all is told apart wrongly.
    """
    chances = {}
    for first, second in itertools.combinations(sorted(right), 2):
        first_only = int((right[first] & ~right[second]).sum())
        second_only = int((right[second] & ~right[first]).sum())
        pair = (first, second) if first_only > second_only else (second, first)
        chances[pair] = mcnemar(first_only, second_only)
    return {pair for pair, chance in holm(chances).items() if chance <= level}


def expected_accuracies(right: Mapping[int, NDArray[np.bool_]], level: float = _LEVEL) -> dict[int, float]:
    """Return per degree the accuracy to rank it by; no two are equal.

    Args:
        right: See :func:`told_apart`.
        level: See :func:`told_apart`.
    """
    order = _order(sorted(right), told_apart(right, level))
    fitted = _without_rise([float(right[degree].mean()) for degree in order])
    expected: dict[int, float] = {}
    limit = math.inf
    for degree, value in zip(order, fitted, strict=True):
        expected[degree] = min(value, limit)
        limit = expected[degree] - _TIE
    return dict(sorted(expected.items()))


def _order(degrees: list[int], better: set[tuple[int, int]]) -> list[int]:
    """Return the degrees ascending, except that a better one precedes the worse. Better has more right: no circles."""
    left, order = list(degrees), []
    while left:
        free = next(d for d in left if not any((other, d) in better for other in left))
        left.remove(free)
        order.append(free)
    return order


def _without_rise(values: list[float]) -> list[float]:
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-1][0] > blocks[-2][0]:
            (later, many), (earlier, few) = blocks.pop(), blocks.pop()
            blocks.append(((later * many + earlier * few) / (many + few), many + few))
    return [value for value, count in blocks for _ in range(count)]

"""What paired differences, one per image, show: p values, intervals, and how many images would show more."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["cost_interval", "images_to_tell", "sign_flip_p"]

_FLIPS = 4000
_POWER = 0.8
_MOST_IMAGES = 100_000  # nobody labels more to learn which degree to use


def sign_flip_p(differences: NDArray[np.float64]) -> float:
    """Return the one-sided p value of a positive mean: the share of sign flips that reach it.

    Where there is no difference each sign is as likely as the other (R. A. Fisher, The Design of Experiments, 1935).

    Args:
        differences: [images], one paired difference each.
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    # Always the same flips.
    flips = 1.0 - 2.0 * (np.random.default_rng(0).random((_FLIPS, len(moved)), np.float32) < 0.5)
    reached = int((flips @ moved >= moved.sum() - 1e-9 * np.abs(moved).sum()).sum())
    return (reached + 1) / (_FLIPS + 1)


def cost_interval(differences: NDArray[np.float64], level: float, *, counts: bool) -> tuple[float, float]:
    """Return the interval that misses the true mean on either side with a chance of ``level``.

    Args:
        differences: [images]; with ``counts`` each is -1, 0 or 1.
        level: Level of one side.
        counts: The differences are of right and wrong answers. Few images change then, and none among some hundred
            does not mean that none ever will, so the interval is the score test's, inverted (T. Tango, Statistics in
            Medicine 17, 1998), half an image wider, so that it holds where a few images make the difference. Otherwise
            the normal one.
    """
    z, count = NormalDist().inv_cdf(1 - level), len(differences)
    mean = float(differences.mean())
    if not counts:
        half = z * float(differences.std(ddof=1)) / math.sqrt(count)
        return mean - half, mean + half

    def end(side: int) -> float:
        near, far = mean, float(side)
        for _ in range(40):
            middle = (near + far) / 2
            beyond = side * (middle - mean) * count - 0.5 > z * math.sqrt(count) * _score_deviation(differences, middle)
            near, far = (near, middle) if beyond else (middle, far)
        return near

    return end(-1), end(1)


def images_to_tell(
    differences: NDArray[np.float64], level: float, *, bound: float = 0.0, counts: bool = False
) -> int | None:
    """Return about how many images would show on which side of a bound the mean lies, were all to go on as it is.

    With a chance of four in five, to two digits; None where more than 100,000 would be needed.

    Args:
        differences: [images].
        level: Level of the test.
        bound: What the mean is compared with.
        counts: The differences are of right and wrong answers.
    """
    distance = abs(float(differences.mean()) - bound)
    deviation = _score_deviation(differences, bound) if counts else float(differences.std(ddof=1))
    z = NormalDist().inv_cdf(1 - level) + NormalDist().inv_cdf(_POWER)
    if z * deviation >= distance * math.sqrt(_MOST_IMAGES):
        return None
    needed = (z * deviation / distance) ** 2
    digits = 10 ** max(math.floor(math.log10(max(needed, 1.0))) - 1, 0)
    return digits * math.ceil(needed / digits)


def _score_deviation(differences: NDArray[np.float64], mean: float) -> float:
    """Return the deviation of differences of -1, 0 and 1 that fits them best among those of a given mean."""
    count, worse, better = len(differences), int((differences > 0).sum()), int((differences < 0).sum())
    b = (2 * count - worse + better) * mean - worse - better
    c = -better * mean * (1 - mean)
    improved = (math.sqrt(max(b * b - 8 * count * c, 0.0)) - b) / (4 * count)
    return math.sqrt(max(2 * improved + mean - mean * mean, 0.0))

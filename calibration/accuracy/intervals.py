"""Intervals of measured accuracies, and the images that they need."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tocom.errors import CalibrationError, DataError, RequestError
from tocom.formats.profile import Accuracy

__all__ = ["check_above_chance", "check_interval", "images_needed", "share_of", "wilson_interval"]

_Z_95 = 1.959963984540054
_TELLING_IMAGES = 30


def wilson_interval(right: int, count: int, z: float = _Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a share (Wilson 1927), 95 % by default.

    Of the usual intervals it holds its level best on few images and near 0 and 1 (Brown, Cai, DasGupta 2001).

    Raises:
        RequestError: ``count`` is not positive, or ``right`` is not in 0…count.
    """
    if count < 1 or not 0 <= right <= count:
        raise RequestError(f"Expected 0 <= right <= count and count >= 1. Got right={right}, count={count}.")
    share = right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At 0 and at all right one end is the share itself; rounding must not push it past.
    low = 0.0 if right == 0 else min(centre - half, share)
    high = 1.0 if right == count else max(centre + half, share)
    return low, high


def share_of(right: NDArray[np.bool_], kind: str, expected: float | None = None) -> Accuracy:
    """Return the share of what is true, [images], with its interval; the rest as :class:`Accuracy` has it."""
    return Accuracy(kind, float(right.mean()), len(right), *wilson_interval(int(right.sum()), len(right)), expected)


def images_needed(share: float, half_width: float) -> int:
    """Return how many images make the 95 % interval of a share at most ``half_width`` to either side.

    Raises:
        RequestError: ``share`` is not in 0…1, or ``half_width`` not above 0 and at most 0.5.
    """
    if not 0 <= share <= 1 or not 0 < half_width <= 0.5:
        raise RequestError(f"Expected a share in 0…1 and a half width in 0…0.5. Got {share!r} and {half_width!r}.")

    # Where the half width, squared, is a quadratic in the count: its positive root.
    variance, square = share * (1 - share), half_width * half_width
    root = math.sqrt(variance * variance - 4 * square * variance + square)
    return max(math.ceil(_Z_95 * _Z_95 / (2 * square) * (variance - 2 * square + root)), 1)


def check_above_chance(accuracy: Mapping[int, Accuracy], classes: int) -> None:
    """Raise CalibrationError when no degree is shown to be better than guessing one of ``classes`` classes.

    Fewer than 30 images, or accuracies without labels, show nothing.
    """
    best = max(accuracy, key=lambda degree: accuracy[degree].value)
    entry = accuracy[best]
    if entry.kind == "top1" and entry.count >= _TELLING_IMAGES and entry.low <= 1 / classes:
        raise CalibrationError(
            f"The most accurate degree, {best}, is right on {entry.value:.1%} of {entry.count} images (95 % interval "
            f"{entry.low:.1%} … {entry.high:.1%}), and guessing one of {classes} classes on {1 / classes:.1%}: that is "
            "not an accuracy. The weights are random, the folders' names stand for other classes, or the images are of "
            "another task. Compare with 'tocom inspect', or calibrate latency alone (no --images)."
        )


def check_interval(accuracy: Mapping[int, Accuracy], points: float) -> None:
    """Raise DataError when the 95 % interval of a degree is wider than ``points`` percentage points to either side.

    The message says how many images are needed.
    """
    needed = {degree: images_needed(entry.value, points / 100) for degree, entry in accuracy.items()}
    worst = max(needed, key=needed.__getitem__)
    entry = accuracy[worst]
    if needed[worst] > entry.count:
        raise DataError(
            f"{entry.count} images give the accuracy of degree {worst} to ±{50 * (entry.high - entry.low):.1f} points; "
            f"±{points:g} needs about {needed[worst]}. Add {needed[worst] - entry.count} images, or ask for a wider "
            "interval."
        )

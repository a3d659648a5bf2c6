"""What to do at a degree, from paired answers on held-out images: a choice with a known rate of being wrong.

Two questions, one test each. Is the compensated answer better than compression alone? Is the better of the two worse
than the source degree's by more than is allowed? Both are answered by flipping signs of the images' differences at
random: where there is no difference, each sign is as likely as the other (R. A. Fisher, The Design of Experiments,
1935).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tocom.errors import RequestError
from tocom.evaluation.answers import Answers

__all__ = ["ALONE", "AVOID", "FEWEST_IMAGES", "USE", "Verdict", "give_verdicts", "sign_flip_p"]

USE, ALONE, AVOID = "use the compensator", "compression alone is enough", "do not use this degree"
FEWEST_IMAGES = 20
_FLIPS = 4000


@dataclass(frozen=True)
class Verdict:
    """What to do at one target degree.

    Attributes:
        degree: The target degree.
        words: :data:`USE`, :data:`ALONE` or :data:`AVOID`.
        gain: Mean of what the compensator takes off an image's log-loss (feature gap, without a classifier).
        gain_p: Chance of such a gain where there is none, corrected for the number of degrees (Holm).
        cost: Mean of what the better of the two adds to the errors of the source degree.
        cost_p: Chance of such a cost where it is the allowed one or less, corrected likewise.
    """

    degree: int
    words: str
    gain: float
    gain_p: float
    cost: float
    cost_p: float


def sign_flip_p(differences: NDArray[np.float64], *, seed: int = 0) -> float:
    """Return the one-sided p value of a positive mean: the share of sign flips that reach it.

    Args:
        differences: [images], one paired difference each.
        seed: Of the flips; always the same ones.
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    flips = 1.0 - 2.0 * (np.random.default_rng(seed).random((_FLIPS, len(moved)), np.float32) < 0.5)
    reached = int((flips @ moved >= moved.sum() - 1e-9 * np.abs(moved).sum()).sum())
    return (reached + 1) / (_FLIPS + 1)


def give_verdicts(
    source: Answers,
    without: Mapping[int, Answers],
    compensated: Mapping[int, Answers],
    *,
    allowed: float,
    level: float = 0.05,
) -> dict[int, Verdict]:
    """Return a verdict per target degree.

    Args:
        source: What is answered to the held-out images at the source degree.
        without: Per target degree the same under compression alone.
        compensated: Per target degree the same with the compensator; empty where there is none.
        allowed: Mean of the images' errors that a degree may add.
        level: Chance of calling a difference where there is none, over all degrees together.

    Raises:
        RequestError: Fewer than 20 images, or answers to different ones.
    """
    count = len(source.label)
    if count < FEWEST_IMAGES or any(len(each.label) != count for each in (*without.values(), *compensated.values())):
        raise RequestError(
            f"A verdict needs the answers to the same images at every degree, to at least {FEWEST_IMAGES}. Got {count} "
            "images. Hold more images out."
        )
    gain = {r: without[r].loss - compensated[r].loss for r in without if r in compensated}
    gain_p = holm({r: sign_flip_p(difference) for r, difference in gain.items()})
    helps = {r: gain_p.get(r, 1.0) <= level for r in without}
    cost = {r: (compensated if helps[r] else without)[r].error - source.error for r in without}
    cost_p = holm({r: sign_flip_p(difference - allowed) for r, difference in cost.items()})
    return {
        r: Verdict(
            degree=r,
            words=AVOID if cost_p[r] <= level else USE if helps[r] else ALONE,
            gain=float(gain[r].mean()) if r in gain else 0.0,
            gain_p=gain_p.get(r, 1.0),
            cost=float(cost[r].mean()),
            cost_p=cost_p[r],
        )
        for r in without
    }


def holm(values: Mapping[int, float]) -> dict[int, float]:
    """Return p values corrected for their number (S. Holm, 1979)."""
    corrected, worst = {}, 0.0
    for index, key in enumerate(sorted(values, key=lambda each: values[each])):
        worst = max(worst, min(1.0, (len(values) - index) * values[key]))
        corrected[key] = worst
    return corrected

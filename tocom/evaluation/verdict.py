"""What to do at a degree, from paired answers on held-out images: a choice with a known rate of being wrong.

Two questions. Which ways of running the degree, compensator, alignment, or both, are better than compression alone? One
test each, and of those that are, the one with the lowest loss is chosen. Is the chosen way, or compression alone where
none is better, worse than the source degree by more than is allowed? All are answered by flipping signs of the images'
differences at random: where there is no difference, each sign is as likely as the other (R. A. Fisher, The Design of
Experiments, 1935).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import RequestError
from tocom.evaluation.answers import WITHOUT, Answers

__all__ = ["ALONE", "AVOID", "FEWEST_IMAGES", "USE", "Verdict", "give_verdicts", "sign_flip_p"]

USE = {
    "aligned": "use the alignment",
    "compensated": "use the compensator",
    "both": "use the compensator and the alignment",
}
ALONE, AVOID = "compression alone is enough", "do not use this degree"
FEWEST_IMAGES = 20
_FLIPS = 4000


@dataclass(frozen=True)
class Verdict:
    """What to do at one target degree.

    Attributes:
        degree: The target degree.
        words: One of :data:`USE`, :data:`ALONE` or :data:`AVOID`.
        way: The chosen one, ``without`` where none helps; where the degree is not to be used, the best that there is.
        gain: Mean of what the way with the lowest loss takes off an image's log-loss (feature gap, without a
            classifier), of those that help, or else of all.
        gain_p: Chance of such a gain where there is none, corrected for the number of ways and degrees (Holm).
        cost: Mean of what the chosen way adds to the errors of the source degree.
        cost_p: Chance of such a cost where it is the allowed one or less, corrected for the number of degrees.
    """

    degree: int
    words: str
    way: str
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
    answers: Mapping[str, Mapping[int, Answers]],
    *,
    allowed: float,
    level: float = 0.05,
) -> dict[int, Verdict]:
    """Return a verdict per target degree.

    Args:
        source: What is answered to the held-out images at the source degree.
        answers: Per way (see :data:`tocom.evaluation.answers.WAYS`) and target degree the same; ``without``, which is
            compression alone, at every degree. An alignment must not have been fitted on the image that it answers to.
        allowed: Mean of the images' errors that a degree may add.
        level: Chance of calling a difference where there is none, over all ways and degrees together.

    Raises:
        RequestError: Fewer than 20 images, or answers to different ones.
    """
    count, without = len(source.label), answers[WITHOUT]
    if count < FEWEST_IMAGES or any(len(each.label) != count for of in answers.values() for each in of.values()):
        raise RequestError(
            f"A verdict needs the answers to the same images at every degree, to at least {FEWEST_IMAGES}. Got {count} "
            "images. Hold more images out."
        )
    gain = {
        (way, r): without[r].loss - answers[way][r].loss
        for way in USE
        if way in answers
        for r in without
        if r in answers[way]
    }
    gain_p = holm({key: sign_flip_p(difference) for key, difference in gain.items()})
    best: dict[int, str] = {}
    for r in without:
        offered = [way for way in USE if (way, r) in gain]
        helping = [way for way in offered if gain_p[way, r] <= level]
        best[r] = max(helping or offered, key=lambda way, r=r: gain[way, r].mean(), default=WITHOUT)  # type: ignore[misc]
    chosen = {r: way if gain_p.get((way, r), 1.0) <= level else WITHOUT for r, way in best.items()}
    cost = {r: answers[way][r].error - source.error for r, way in chosen.items()}
    cost_p = holm({r: sign_flip_p(difference - allowed) for r, difference in cost.items()})
    return {
        r: Verdict(
            degree=r,
            words=AVOID if cost_p[r] <= level else USE.get(way, ALONE),
            way=way,
            gain=float(gain[best[r], r].mean()) if best[r] in USE else 0.0,
            gain_p=gain_p.get((best[r], r), 1.0),
            cost=float(cost[r].mean()),
            cost_p=cost_p[r],
        )
        for r, way in chosen.items()
    }


def holm(values: Mapping[Any, float]) -> dict[Any, float]:
    """Return p values corrected for their number (S. Holm, 1979)."""
    corrected, worst = {}, 0.0
    for index, key in enumerate(sorted(values, key=lambda each: values[each])):
        worst = max(worst, min(1.0, (len(values) - index) * values[key]))
        corrected[key] = worst
    return corrected

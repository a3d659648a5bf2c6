"""What to do at a degree, from paired answers on held-out images: a choice with a known rate of being wrong.

Two questions. Which ways of running the degree, compensator, alignment, or both, are better than compression alone? One
test each, and of those that are, the one with the lowest loss is chosen. And what does a way cost, against the source
degree? Its interval lies within what is allowed, or beyond it, or the images cannot tell. "Enough" is said only of an
interval within, as in a trial of non-inferiority: that no difference was found shows nothing on few images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tocom.errors import RequestError
from tocom.evaluation.answers import WITHOUT, Answers
from tocom.evaluation.paired import cost_interval, images_to_tell, sign_flip_p
from tocom.system.statistics import holm

__all__ = ["ALONE", "AVOID", "FEWEST_IMAGES", "UNDECIDED", "USE", "Verdict", "give_verdicts"]

_NAMES = {
    WITHOUT: "compression alone",
    "aligned": "the alignment",
    "compensated": "the compensator",
    "both": "the compensator and the alignment",
}
USE = {way: f"use {name}" for way, name in _NAMES.items() if way != WITHOUT}
ALONE, AVOID, UNDECIDED = "compression alone is enough", "do not use this degree", "these images cannot tell"
FEWEST_IMAGES = 20


@dataclass(frozen=True)
class Verdict:
    """What to do at one target degree.

    Attributes:
        degree: The target degree.
        words: One of :data:`USE`, :data:`ALONE`, :data:`AVOID` or :data:`UNDECIDED`.
        note: A sentence on what is not shown, and what to do about it; empty where all is.
        way: The chosen one; the one with the lowest loss, where the images cannot tell or the degree is not to be used.
        gain: Mean of what the best other way than compression alone takes off an image's log-loss (feature gap, without
            a classifier): of the chosen one where one is better, or else of the one with the lowest loss.
        gain_p: Chance of such a gain where there is none, corrected for the number of ways and degrees (Holm).
        cost: Mean of what the chosen way adds to the errors of the source degree.
        cost_low: Lower end of its interval; the intervals of all degrees hold together.
        cost_high: Upper end.
        images_to_tell: About how many images would tell, were the differences to stay as they are; None where nothing
            is open, or no practical number would.
    """

    degree: int
    words: str
    note: str
    way: str
    gain: float
    gain_p: float
    cost: float
    cost_low: float
    cost_high: float
    images_to_tell: int | None


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
        level: Chance, over all ways and degrees together, of each wrong word: "use" without a gain, "enough" where the
            cost is beyond what is allowed, "do not use" where it is within.

    Raises:
        RequestError: Fewer than 20 images, or answers to different ones.
    """
    count, without = len(source.label), answers[WITHOUT]
    if count < FEWEST_IMAGES or any(len(each.label) != count for of in answers.values() for each in of.values()):
        raise RequestError(
            f"A verdict needs the answers to the same images at every degree, to at least {FEWEST_IMAGES}. Got {count} "
            "images. Hold more images out."
        )
    counts, each_level = source.answer is not None, level / len(without)
    gain = {
        (way, r): without[r].loss - answers[way][r].loss
        for way in USE
        if way in answers
        for r in without
        if r in answers[way]
    }
    gain_p = holm({key: sign_flip_p(difference) for key, difference in gain.items()})
    verdicts = {}
    for r in without:
        others = [way for way in USE if (way, r) in gain]
        cost = {way: answers[way][r].error - source.error for way in (WITHOUT, *others)}
        interval = {way: cost_interval(each, each_level, counts=counts) for way, each in cost.items()}
        helping = [way for way in others if gain_p[way, r] <= level]
        best = max(helping or others, key=lambda way, r=r: gain[way, r].mean(), default=None)  # type: ignore[misc]
        lowest = best if best is not None and gain[best, r].mean() > 0 else WITHOUT
        if all(low > allowed for low, _ in interval.values()):
            words, way = AVOID, lowest
        elif helping and best is not None:
            words, way = USE[best], best
        elif interval[WITHOUT][1] <= allowed:
            words, way = ALONE, WITHOUT
        else:
            words, way = UNDECIDED, lowest
        needed, note = None, ""
        if words == UNDECIDED:
            sizes = [images_to_tell(cost[WITHOUT], each_level, bound=allowed, counts=counts)]
            if lowest in others:
                sizes.append(images_to_tell(gain[lowest, r], level / len(gain)))
            needed = min((size for size in sizes if size is not None), default=None)
            note = f"{_cost_in_words(WITHOUT, interval, allowed, count, counts=counts)} "
            note += f"{'No practical number' if needed is None else f'About {needed:,}'} would tell."
            if others:
                note += f" Until then take {_NAMES[way]}: its {'log-loss' if counts else 'feature gap'} is the lowest."
        elif words in USE.values() and interval[way][1] > allowed:
            note = (
                f"It is better than compression alone. {_cost_in_words(way, interval, allowed, count, counts=counts)}"
            )
        verdicts[r] = Verdict(
            degree=r,
            words=words,
            note=note,
            way=way,
            gain=float(gain[best, r].mean()) if best is not None else 0.0,
            gain_p=gain_p[best, r] if best is not None else 1.0,
            cost=float(cost[way].mean()),
            cost_low=interval[way][0],
            cost_high=interval[way][1],
            images_to_tell=needed,
        )
    return verdicts


def _cost_in_words(
    way: str, interval: Mapping[str, tuple[float, float]], allowed: float, count: int, *, counts: bool
) -> str:
    """Return a sentence on what a way costs and may cost."""
    low, high = interval[way]
    if not counts:
        said = f"the feature gap of {_NAMES[way]} between {low:.4f} and {high:.4f}; {allowed:g} is allowed"
    else:
        points = f"between {-100 * high:+.1f} and {-100 * low:+.1f} points"
        said = f"{_NAMES[way]} {points} from the source degree's accuracy; a loss of {100 * allowed:g} is allowed"
    return f"{count} images put {said}."

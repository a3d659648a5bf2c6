"""Verdicts on constructed cases, with their rates of error."""

from __future__ import annotations

import numpy as np
import pytest

from tocom.errors import RequestError
from tocom.evaluation.answers import Answers
from tocom.evaluation.paired import cost_interval, images_to_tell, sign_flip_p
from tocom.evaluation.verdict import ALONE, AVOID, UNDECIDED, USE, Verdict, give_verdicts
from tocom.system.statistics import holm

IMAGES, CASES, DEGREES = 100, 40, (4, 8, 12)


def losses(rng: np.random.Generator) -> np.ndarray:
    """Log-losses as classifiers have them: most small, a few large."""
    return rng.exponential(0.4, IMAGES)


def gaps(values: np.ndarray) -> Answers:
    """Answers of a model without a classifier: the gap is what is to be low."""
    return Answers(values, np.zeros(len(values), np.int64))


def shares(gain: float, cost: float, allowed: float = 0.05, images: int = IMAGES) -> dict[str, float]:
    """Return how often each verdict is given, where the compensator takes ``gain`` off what compression adds."""
    counts = dict.fromkeys((USE["compensated"], ALONE, AVOID, UNDECIDED), 0)
    for case in range(CASES):
        for verdict in chosen(case, {"compensated": gain}, cost=cost, allowed=allowed, images=images):
            counts[verdict.words] += 1
    return {words: count / (CASES * len(DEGREES)) for words, count in counts.items()}


def test_a_compensator_that_helps_is_used() -> None:
    assert shares(gain=0.05, cost=0.06)[USE["compensated"]] > 0.95


def test_no_difference_is_not_called_one() -> None:
    found = shares(gain=0.0, cost=0.0)
    assert found[ALONE] > 0.8
    assert found[USE["compensated"]] <= 0.05
    assert found[AVOID] <= 0.05


def test_harm_is_never_called_help() -> None:
    found = shares(gain=-0.05, cost=0.0)
    assert found[USE["compensated"]] == 0
    assert found[ALONE] > 0.8


def test_a_degree_that_costs_too_much_is_refused() -> None:
    assert shares(gain=0.0, cost=0.2)[AVOID] > 0.95
    # At the very edge of what is allowed each word is said at the rate of the level at most, over all degrees together.
    edge = shares(gain=0.0, cost=0.05)
    assert edge[AVOID] <= 0.05
    assert edge[ALONE] <= 0.05


def test_what_few_images_cannot_tell_is_said_with_what_to_do() -> None:
    # The gain and the cost of compression are there, and too small for the spread of so few images.
    found = [verdict for case in range(CASES) for verdict in chosen(case, {"compensated": 0.02}, cost=0.04, images=25)]
    open_ones = [verdict for verdict in found if verdict.words == UNDECIDED]
    assert len(open_ones) > 0.7 * len(found)
    assert np.mean([verdict.words in (ALONE, AVOID) for verdict in found]) <= 0.05
    for verdict in open_ones:
        assert verdict.way == ("compensated" if verdict.gain > 0 else "without")
        assert verdict.images_to_tell is None or verdict.images_to_tell > 25
        assert verdict.note.startswith("25 images put the feature gap of compression alone between ")
        assert (f"About {verdict.images_to_tell:,}" if verdict.images_to_tell else "No practical") in verdict.note
        assert "Until then take " + ("the compensator" if verdict.gain > 0 else "compression alone") in verdict.note
    # With as many images as it asks for, half again for what chance adds, most are told.
    asked = int(1.5 * np.median([verdict.images_to_tell or np.inf for verdict in open_ones]))
    assert shares(gain=0.02, cost=0.04, images=asked)[UNDECIDED] < 0.3


def right_or_wrong(rng: np.random.Generator, images: int, lost: float, found: float = 0.0) -> tuple[Answers, Answers]:
    """Return a source's answers and a degree's, where shares of the images turn wrong and right; dense 80 % right."""
    label, log_loss = np.zeros(images, np.int64), np.zeros(images)
    source = (rng.random(images) < 0.2).astype(np.int64)
    change = rng.random(images)
    degree = np.where(source == 0, change < lost / 0.8, change >= found / 0.2).astype(np.int64)
    return Answers(log_loss, label, source, log_loss), Answers(log_loss, label, degree, log_loss)


@pytest.mark.parametrize("images", [40, 80, 300, 1500])
@pytest.mark.parametrize(("lost", "found"), [(0.01, 0.0), (0.04, 0.03)])
def test_enough_is_not_said_of_answers_that_lose_what_is_not_allowed(images: int, lost: float, found: float) -> None:
    # One point more than nothing is lost: with few images often none of them shows it.
    words = []
    for case in range(300):
        source, degree = right_or_wrong(np.random.default_rng(case), images, lost, found)
        words.append(give_verdicts(source, {"without": {8: degree}}, allowed=0.01)[8].words)
    assert words.count(ALONE) / 300 <= 0.06
    assert words.count(AVOID) / 300 <= 0.06


def test_enough_is_said_of_answers_where_it_is_shown() -> None:
    for images, words in ((80, UNDECIDED), (1500, ALONE)):
        source, degree = right_or_wrong(np.random.default_rng(0), images, 0.0)
        verdict = give_verdicts(source, {"without": {8: degree}}, allowed=0.01)[8]
        assert verdict.words == words
        if words == UNDECIDED:
            assert 300 < (verdict.images_to_tell or 0) < 800
            assert verdict.note == (
                "80 images put compression alone between -4.4 and +4.4 points from the source degree's accuracy; a "
                "loss of 1 is allowed. About 620 would tell."
            )


def test_a_way_that_helps_and_may_still_cost_too_much_says_so() -> None:
    rng = np.random.default_rng(0)
    source = losses(rng)
    without = source + rng.normal(0.1, 0.3, IMAGES)
    answers = {"without": {8: gaps(without)}, "compensated": {8: gaps(without - rng.normal(0.08, 0.1, IMAGES))}}
    verdict = give_verdicts(gaps(source), answers, allowed=0.05)[8]
    assert verdict.words == USE["compensated"]
    assert verdict.cost_low <= 0.05 < verdict.cost_high
    assert verdict.note.startswith(
        "It is better than compression alone. 100 images put the feature gap of the compensator "
    )


def test_without_a_compensator_only_the_cost_is_judged() -> None:
    rng = np.random.default_rng(0)
    source = losses(rng)
    verdicts = give_verdicts(gaps(source), {"without": {4: gaps(source + 0.01), 20: gaps(source + 0.5)}}, allowed=0.05)
    assert {r: verdict.words for r, verdict in verdicts.items()} == {4: ALONE, 20: AVOID}


def chosen(
    case: int, gains: dict[str, float], *, cost: float = 0.0, allowed: float = 0.05, images: int = IMAGES
) -> list[Verdict]:
    """Return the verdicts where each way takes its gain off what compression adds."""
    rng = np.random.default_rng(case)
    source = rng.exponential(0.4, images)
    without = {r: source + rng.normal(cost, 0.15, images) for r in DEGREES}
    answers = {"without": {r: gaps(each) for r, each in without.items()}}
    for way, gain in gains.items():
        answers[way] = {r: gaps(each - rng.normal(gain, 0.1, images)) for r, each in without.items()}
    return list(give_verdicts(gaps(source), answers, allowed=allowed).values())


@pytest.mark.parametrize(
    ("gains", "best"),
    [
        ({"compensated": 0.06, "aligned": 0.0, "both": 0.0}, "compensated"),
        ({"compensated": 0.0, "aligned": 0.06, "both": 0.0}, "aligned"),
        ({"compensated": 0.0, "aligned": 0.06}, "aligned"),
        ({"compensated": 0.06, "aligned": 0.06, "both": 0.15}, "both"),
        ({"compensated": -0.1, "aligned": 0.06, "both": -0.1}, "aligned"),
    ],
)
def test_the_way_that_helps_most_is_chosen(gains: dict[str, float], best: str) -> None:
    found = [verdict for case in range(12) for verdict in chosen(case, gains)]
    assert np.mean([verdict.way == best and verdict.words == USE[best] for verdict in found]) > 0.9
    assert np.mean([verdict.gain for verdict in found]) == pytest.approx(gains[best], abs=0.02)


def test_more_ways_to_choose_from_call_no_more_differences() -> None:
    nothing = {"compensated": 0.0, "aligned": 0.0, "both": 0.0}
    runs = [chosen(case, nothing) for case in range(100)]
    # Over all ways and degrees together: in at most one run of twenty is any of them called help.
    assert np.mean([any(verdict.words in USE.values() for verdict in run) for run in runs]) <= 0.08
    assert all((verdict.words in USE.values()) == (verdict.gain_p <= 0.05) for run in runs for verdict in run)


def test_a_degree_that_no_way_saves_is_refused_and_one_that_a_way_saves_is_not() -> None:
    hopeless = [verdict for case in range(8) for verdict in chosen(case, {"aligned": 0.05, "both": 0.06}, cost=0.4)]
    assert {verdict.words for verdict in hopeless} == {AVOID}
    saved = [verdict for case in range(8) for verdict in chosen(case, {"aligned": 0.05, "both": 0.4}, cost=0.4)]
    assert {verdict.words for verdict in saved} == {USE["both"]}
    assert max(abs(verdict.cost) for verdict in saved) < 0.1


def test_of_equal_ways_the_one_without_training_is_chosen() -> None:
    rng = np.random.default_rng(0)
    source = losses(rng)
    same = {4: gaps(source)}
    answers = {"without": {4: gaps(source + 0.2)}, "compensated": same, "aligned": same, "both": same}
    assert give_verdicts(gaps(source), answers, allowed=0.05)[4].way == "aligned"


@pytest.mark.parametrize(("worse", "better", "images"), [(5, 2, 80), (0, 0, 80), (0, 4, 200), (30, 25, 400)])
def test_intervals_of_answers_against_a_likelihood_that_is_searched(worse: int, better: int, images: int) -> None:
    differences = np.array([1.0] * worse + [-1.0] * better + [0.0] * (images - worse - better))
    low, high = cost_interval(differences, 0.025, counts=True)
    assert low <= differences.mean() <= high
    for end, sign in ((low, 1), (high, -1)):
        # Of all shares that turn right, those that turn wrong being so many more, the most likely one.
        shares = np.linspace(max(0.0, -end) + 1e-9, (1 - end) / 2 - 1e-9, 400_001)
        likelihood = (images - worse - better) * np.log(1 - 2 * shares - end)
        likelihood += worse * np.log(shares + end) + better * np.log(shares)
        share = shares[likelihood.argmax()]
        deviation = np.sqrt((2 * share + end - end**2) / images)
        assert (sign * (differences.mean() - end) - 0.5 / images) / deviation == pytest.approx(1.96, abs=0.01)


def test_images_that_would_tell_do_so_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    needed = images_to_tell(rng.normal(0.04, 0.2, 5000), 0.05)
    assert needed == pytest.approx(155, rel=0.1)
    shown = [sign_flip_p(rng.normal(0.04, 0.2, needed or 0)) <= 0.05 for _ in range(150)]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.1)
    assert images_to_tell(np.array([0.0, 0.0, 1.0, -1.0]), 0.05) is None


def test_p_values_against_the_exact_ones() -> None:
    assert sign_flip_p(np.zeros(30)) == 1.0
    differences = np.array([0.3, -0.1, 0.2, 0.4, 0.25, -0.05, 0.1, 0.35])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T
    exact = (signs @ np.abs(differences) >= differences.sum() - 1e-12).mean()
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.012)
    assert holm({1: 0.01, 2: 0.04, 3: 0.03}) == pytest.approx({1: 0.03, 2: 0.06, 3: 0.06})


def test_too_few_images_are_refused() -> None:
    with pytest.raises(RequestError, match=r"at least 20\. Got 5 images"):
        give_verdicts(gaps(np.zeros(5)), {"without": {4: gaps(np.zeros(5))}}, allowed=0.0)

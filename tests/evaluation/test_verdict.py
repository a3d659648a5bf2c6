"""Verdicts on constructed cases, with their rates of error."""

from __future__ import annotations

import numpy as np
import pytest

from tocom.errors import RequestError
from tocom.evaluation.answers import Answers
from tocom.evaluation.verdict import ALONE, AVOID, USE, Verdict, give_verdicts, holm, sign_flip_p

IMAGES, CASES, DEGREES = 100, 40, (4, 8, 12)


def losses(rng: np.random.Generator) -> np.ndarray:
    """Log-losses as classifiers have them: most small, a few large."""
    return rng.exponential(0.4, IMAGES)


def gaps(values: np.ndarray) -> Answers:
    """Answers of a model without a classifier: the gap is what is to be low."""
    return Answers(values, np.zeros(len(values), np.int64))


def shares(gain: float, cost: float, allowed: float = 0.05) -> dict[str, float]:
    """Return how often each verdict is given, where the compensator takes ``gain`` off what compression adds."""
    counts = dict.fromkeys((USE["compensated"], ALONE, AVOID), 0)
    for case in range(CASES):
        rng = np.random.default_rng(case)
        source = losses(rng)
        without = {r: source + rng.normal(cost, 0.15, IMAGES) for r in DEGREES}
        compensated = {r: without[r] - rng.normal(gain, 0.1, IMAGES) for r in DEGREES}
        for verdict in give_verdicts(
            gaps(source),
            {
                "without": {r: gaps(each) for r, each in without.items()},
                "compensated": {r: gaps(each) for r, each in compensated.items()},
            },
            allowed=allowed,
        ).values():
            counts[verdict.words] += 1
    return {words: count / (CASES * len(DEGREES)) for words, count in counts.items()}


def test_a_compensator_that_helps_is_used() -> None:
    assert shares(gain=0.05, cost=0.06)[USE["compensated"]] > 0.95


def test_no_difference_is_not_called_one() -> None:
    found = shares(gain=0.0, cost=0.02)
    assert found[USE["compensated"]] <= 0.05
    assert found[AVOID] <= 0.05


def test_harm_is_never_called_help() -> None:
    assert shares(gain=-0.05, cost=0.02)[USE["compensated"]] == 0


def test_a_degree_that_costs_too_much_is_refused() -> None:
    assert shares(gain=0.0, cost=0.2)[AVOID] > 0.95
    # At the very edge of what is allowed it is called too much at the rate of the level, over all degrees together.
    assert shares(gain=0.0, cost=0.05)[AVOID] <= 0.05


def test_without_a_compensator_only_the_cost_is_judged() -> None:
    rng = np.random.default_rng(0)
    source = losses(rng)
    verdicts = give_verdicts(gaps(source), {"without": {4: gaps(source + 0.01), 20: gaps(source + 0.5)}}, allowed=0.05)
    assert {r: verdict.words for r, verdict in verdicts.items()} == {4: ALONE, 20: AVOID}


def chosen(case: int, gains: dict[str, float], *, cost: float = 0.02, images: int = IMAGES) -> list[Verdict]:
    """Return the verdicts where each way takes its gain off what compression adds."""
    rng = np.random.default_rng(case)
    source = rng.exponential(0.4, images)
    without = {r: source + rng.normal(cost, 0.15, images) for r in DEGREES}
    answers = {"without": {r: gaps(each) for r, each in without.items()}}
    for way, gain in gains.items():
        answers[way] = {r: gaps(each - rng.normal(gain, 0.1, images)) for r, each in without.items()}
    return list(give_verdicts(gaps(source), answers, allowed=0.05).values())


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
    assert np.mean([any(verdict.words != ALONE for verdict in run) for run in runs]) <= 0.08
    assert all(verdict.way == "without" or verdict.gain_p <= 0.05 for run in runs for verdict in run)


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

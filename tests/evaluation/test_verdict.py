"""Verdicts on constructed cases, with their rates of error."""

from __future__ import annotations

import numpy as np
import pytest

from tocom.errors import RequestError
from tocom.evaluation.answers import Answers
from tocom.evaluation.verdict import ALONE, AVOID, USE, give_verdicts, holm, sign_flip_p

IMAGES, CASES, DEGREES = 100, 40, (4, 8, 12)


def losses(rng: np.random.Generator) -> np.ndarray:
    """Log-losses as classifiers have them: most small, a few large."""
    return rng.exponential(0.4, IMAGES)


def gaps(values: np.ndarray) -> Answers:
    """Answers of a model without a classifier: the gap is what is to be low."""
    return Answers(values, np.zeros(len(values), np.int64))


def shares(gain: float, cost: float, allowed: float = 0.05) -> dict[str, float]:
    """Return how often each verdict is given, where the compensator takes ``gain`` off what compression adds."""
    counts = dict.fromkeys((USE, ALONE, AVOID), 0)
    for case in range(CASES):
        rng = np.random.default_rng(case)
        source = losses(rng)
        without = {r: source + rng.normal(cost, 0.15, IMAGES) for r in DEGREES}
        compensated = {r: without[r] - rng.normal(gain, 0.1, IMAGES) for r in DEGREES}
        for verdict in give_verdicts(
            gaps(source),
            {r: gaps(each) for r, each in without.items()},
            {r: gaps(each) for r, each in compensated.items()},
            allowed=allowed,
        ).values():
            counts[verdict.words] += 1
    return {words: count / (CASES * len(DEGREES)) for words, count in counts.items()}


def test_a_compensator_that_helps_is_used() -> None:
    assert shares(gain=0.05, cost=0.06)[USE] > 0.95


def test_no_difference_is_not_called_one() -> None:
    found = shares(gain=0.0, cost=0.02)
    assert found[USE] <= 0.05
    assert found[AVOID] <= 0.05


def test_harm_is_never_called_help() -> None:
    assert shares(gain=-0.05, cost=0.02)[USE] == 0


def test_a_degree_that_costs_too_much_is_refused() -> None:
    assert shares(gain=0.0, cost=0.2)[AVOID] > 0.95
    # At the very edge of what is allowed it is called too much at the rate of the level, over all degrees together.
    assert shares(gain=0.0, cost=0.05)[AVOID] <= 0.05


def test_without_a_compensator_only_the_cost_is_judged() -> None:
    rng = np.random.default_rng(0)
    source = losses(rng)
    verdicts = give_verdicts(gaps(source), {4: gaps(source + 0.01), 20: gaps(source + 0.5)}, {}, allowed=0.05)
    assert {r: verdict.words for r, verdict in verdicts.items()} == {4: ALONE, 20: AVOID}


def test_p_values_against_the_exact_ones() -> None:
    assert sign_flip_p(np.zeros(30)) == 1.0
    differences = np.array([0.3, -0.1, 0.2, 0.4, 0.25, -0.05, 0.1, 0.35])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T
    exact = (signs @ np.abs(differences) >= differences.sum() - 1e-12).mean()
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.012)
    assert holm({1: 0.01, 2: 0.04, 3: 0.03}) == pytest.approx({1: 0.03, 2: 0.06, 3: 0.06})


def test_too_few_images_are_refused() -> None:
    with pytest.raises(RequestError, match=r"at least 20\. Got 5 images"):
        give_verdicts(gaps(np.zeros(5)), {4: gaps(np.zeros(5))}, {}, allowed=0.0)

"""Which degree is how right: the exact test against scipy, and a ranking that noise does not move."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from tocom.calibration import expected_accuracies, mcnemar
from tocom.calibration.accuracy.ranking import told_apart
from tocom.runtime.policy.choice import Candidate, frontier


@given(st.integers(0, 450), st.integers(0, 450))
def test_mcnemar_equals_the_binomial_test(first_only: int, second_only: int) -> None:
    count = first_only + second_only
    expected = binomtest(first_only, count).pvalue if count else 1.0
    assert mcnemar(first_only, second_only) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(second_only, first_only) == mcnemar(first_only, second_only)


def test_mcnemar_of_very_many_images_follows_the_exact_test() -> None:
    for first_only, second_only in ((1000, 1001), (1500, 1380), (2000, 1800)):
        exact = binomtest(first_only, first_only + second_only).pvalue
        assert mcnemar(first_only, second_only) == pytest.approx(exact, rel=0.05)


def noise(seed: int, degrees: tuple[int, ...] = (0, 4, 8, 12, 16, 20), count: int = 120) -> dict[int, np.ndarray]:
    """Return answers of degrees that are equally right: they part on one image in ten, either way."""
    generator = np.random.default_rng(seed)
    shared = generator.random(count) < 0.85
    return {degree: shared ^ (generator.random(count) < 0.05) for degree in degrees}


def test_noise_dominates_the_dense_degree_at_most_one_time_in_twenty() -> None:
    runs, dominated, dominated_by_share = 400, 0, 0
    for seed in range(runs):
        right = noise(seed)
        latency = {degree: 40.0 - degree for degree in right}
        for ranked, by_share in ((expected_accuracies(right), False), ({d: r.mean() for d, r in right.items()}, True)):
            kept = {each.degree for each in frontier([Candidate(d, float(ranked[d]), latency[d]) for d in ranked])}
            if by_share:
                dominated_by_share += 0 not in kept
            else:
                dominated += 0 not in kept
    assert dominated <= 0.05 * runs
    assert dominated_by_share > 0.5 * runs  # what ranking by shares would do


def test_a_degree_that_is_really_better_stands_first() -> None:
    right = noise(0)
    right[0] = right[0] & (np.arange(120) % 4 != 0)  # a quarter of the answers lost
    expected = expected_accuracies(right)
    assert expected[0] < min(value for degree, value in expected.items() if degree)
    assert all(pair[1] == 0 for pair in told_apart(right))


def test_a_degree_that_is_really_worse_stands_last() -> None:
    right = noise(1)
    right[20] = right[20] & (np.arange(120) % 4 != 0)
    expected = expected_accuracies(right)
    assert expected[20] == min(expected.values())
    assert (0, 20) in told_apart(right)


answers = st.integers(1, 40).flatmap(
    lambda count: st.dictionaries(
        st.integers(0, 20),
        st.lists(st.booleans(), min_size=count, max_size=count).map(np.array),
        min_size=1,
        max_size=6,
    )
)


@given(answers)
def test_the_fit_is_strict_keeps_the_mean_and_puts_no_degree_ahead_unproved(right: dict[int, np.ndarray]) -> None:
    expected = expected_accuracies(right)
    assert list(expected) == sorted(right)
    assert len(set(expected.values())) == len(expected)
    assert np.mean(list(expected.values())) == pytest.approx(np.mean([r.mean() for r in right.values()]), abs=1e-4)
    better = told_apart(right)
    for lower in right:
        for higher in right:
            if (lower, higher) in better or (lower < higher and not better):
                assert expected[lower] > expected[higher]

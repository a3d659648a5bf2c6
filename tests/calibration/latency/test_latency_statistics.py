"""Quantile intervals, warm-up and steps: against SciPy, and on series whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from tocom.calibration.latency.quantiles import interval_ranks, samples_needed, summarize, widest_interval
from tocom.calibration.latency.steady import find_shift, judge
from tocom.errors import RequestError


@settings(max_examples=40)
@given(st.integers(1, 1500), st.sampled_from([0.5, 0.9, 0.95, 0.99]), st.sampled_from([0.9, 0.95, 0.99]))
def test_ranks_hold_the_confidence_and_are_as_close_as_can_be(count: int, quantile: float, confidence: float) -> None:
    ranks = interval_ranks(count, quantile, confidence)
    tail = (1 - confidence) / 2
    if ranks is None:
        assert max(binom.pmf(0, count, quantile), binom.pmf(count, count, quantile)) > tail - 1e-12
        return
    low, high = ranks
    assert 1 <= low <= high <= count
    assert binom.cdf(high - 1, count, quantile) - binom.cdf(low - 1, count, quantile) >= confidence - 1e-9
    assert binom.cdf(low, count, quantile) > tail - 1e-9
    assert high == 1 or binom.cdf(high - 2, count, quantile) < 1 - tail + 1e-9


def test_samples_needed_for_an_interval() -> None:
    assert [samples_needed(q) for q in (0.5, 0.9, 0.95, 0.99)] == [6, 36, 72, 368]


@pytest.mark.parametrize(("name", "quantile"), [("p50", 0.5), ("p95", 0.95)])
def test_intervals_cover_the_true_quantile_of_skewed_latencies(name: str, quantile: float) -> None:
    generator = np.random.default_rng(0)
    truth = 10 + math.exp(binom_free_normal_quantile(quantile))
    hits = 0
    for _ in range(400):
        low, high = summarize(10 + generator.lognormal(size=120)).intervals_ms[name]
        hits += low <= truth <= high
    assert hits / 400 >= 0.93


def binom_free_normal_quantile(quantile: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(quantile))


def test_outliers_are_counted_and_kept() -> None:
    samples = [*np.linspace(10, 11, 95).tolist(), 40.0, 50.0, 60.0, 70.0, 80.0]
    latency = summarize(samples)
    assert (latency.count, latency.outliers, latency.max_ms) == (100, 5, 80.0)
    assert latency.p99_ms > 60
    assert summarize([3.0]).intervals_ms == {}
    assert widest_interval(summarize([3.0])) == math.inf
    assert widest_interval(summarize([3.0] * 100)) == 0


@pytest.mark.parametrize("arguments", [(0, 0.5, 0.95), (5, 0.0, 0.95), (5, 0.5, 1.0)])
def test_impossible_intervals(arguments: tuple[int, float, float]) -> None:
    with pytest.raises(RequestError, match="Expected count >= 1"):
        interval_ranks(*arguments)


def rounds(count: int, factors: np.ndarray | float = 1.0, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """Return [count, 3] latencies of three degrees that share the factors."""
    generator = np.random.default_rng(seed)
    shared = np.broadcast_to(factors, count)[:, None]
    return np.array([30.0, 20.0, 10.0]) * shared * np.exp(noise * generator.standard_normal((count, 3)))


@pytest.mark.parametrize("seed", range(5))
def test_a_warm_up_is_found_where_it_ends(seed: int) -> None:
    slow = 1 + 0.6 * np.exp(-np.arange(200) / 8)
    measured = rounds(200, slow, seed=seed)
    found = judge(measured)
    assert found.steady
    assert 15 <= found.warmup_rounds <= 70
    assert found.warmup_factor > 1.01
    assert np.median(measured[found.warmup_rounds :], axis=0) == pytest.approx([30, 20, 10], rel=0.01)
    assert found.shift_round is None


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_rare_slow_rounds_are_no_warm_up(seed: int) -> None:
    generator = np.random.default_rng(seed)
    spikes = np.where(generator.random(300) < 0.03, 4.0, 1.0)
    found = judge(rounds(300, spikes, seed=seed))
    assert found.warmup_factor == pytest.approx(1.0, abs=0.02)
    assert found.shift_round is None


def test_a_device_that_keeps_changing_is_not_steady() -> None:
    assert not judge(rounds(100, np.linspace(2, 1, 100))).steady


@pytest.mark.parametrize(("factor", "seed"), [(1.3, 0), (0.8, 1), (1.1, 2)])
def test_a_step_in_the_middle_is_found(factor: float, seed: int) -> None:
    found = judge(rounds(300, np.where(np.arange(300) < 180, 1.0, factor), seed=seed))
    assert found.warmup_rounds < 20
    assert found.shift_round == pytest.approx(180 - found.warmup_rounds, abs=10)
    assert found.shift_factor == pytest.approx(factor, rel=0.02)


def test_a_boost_that_ends_shows_as_a_fast_warm_up() -> None:
    found = judge(rounds(300, np.where(np.arange(300) < 60, 0.8, 1.0)))
    assert found.warmup_rounds == pytest.approx(60, abs=10)
    assert found.warmup_factor == pytest.approx(0.8, rel=0.02)


def test_few_rounds_say_nothing() -> None:
    found = judge(rounds(7))
    assert (found.warmup_rounds, found.steady, found.shift_round) == (0, True, None)
    assert find_shift(np.zeros(0)) == (None, 1.0)

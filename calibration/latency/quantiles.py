"""Latency quantiles with intervals that assume no distribution: latencies are skewed, with rare slow ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from tocom.errors import RequestError
from tocom.formats.measurements import QUANTILES, Latency

__all__ = ["interval_ranks", "samples_needed", "summarize", "widest_interval"]

_OUTLIER_FENCE = 3.0


@cache
def interval_ranks(count: int, quantile: float, confidence: float = 0.95) -> tuple[int, int] | None:
    """Return the ranks, from 1, of the two order statistics that enclose a quantile with this confidence or more.

    The number of samples below the true quantile is binomial, whatever the distribution (David and Nagaraja, *Order
    Statistics*, 3rd edition, section 7.1). Samples count as independent; under slow drift the interval is too narrow.

    Args:
        count: Samples.
        quantile: In 0…1, both exclusive.
        confidence: Least probability that the interval holds the quantile.

    Returns:
        The ranks; None when even the smallest and the largest sample do not enclose it with this confidence.

    Raises:
        RequestError: An argument is out of its range.
    """
    if count < 1 or not 0 < quantile < 1 or not 0 < confidence < 1:
        raise RequestError(
            "Expected count >= 1, and quantile and confidence between 0 and 1. "
            f"Got {count!r}, {quantile!r} and {confidence!r}."
        )
    below = np.cumsum(_binomial(count, quantile))
    tail = (1.0 - confidence) / 2
    # P(rank l lies above the quantile) = P(fewer than l samples below it) must be at most the tail; likewise above.
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1.0 - tail, side="left")) + 1
    return (low, high) if low >= 1 and high <= count else None


@cache
def samples_needed(quantile: float, confidence: float = 0.95) -> int:
    """Return the fewest samples that give the quantile an interval at all: 6 for p50, 72 for p95, 368 for p99."""
    count = 1
    while interval_ranks(count, quantile, confidence) is None:
        count += 1
    return count


def summarize(samples_ms: Sequence[float]) -> Latency:
    """Return the quantiles (linear interpolation) of latency samples in milliseconds, with their 95 % intervals.

    Every sample counts. ``outliers`` says how many lie beyond three interquartile ranges above the upper quartile.
    """
    ordered = np.sort(np.asarray(samples_ms, dtype=np.float64))
    values = [float(value) for value in np.quantile(ordered, list(QUANTILES.values()))]
    intervals = {}
    for name, share in QUANTILES.items():
        ranks = interval_ranks(len(ordered), share)
        if ranks is not None:
            intervals[name] = (float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1]))
    lower, upper = np.quantile(ordered, (0.25, 0.75))
    outliers = int((ordered > upper + _OUTLIER_FENCE * (upper - lower)).sum())
    p50, p90, p95, p99 = values
    return Latency(len(ordered), p50, p90, p95, p99, intervals, outliers, float(ordered[-1]))


def widest_interval(latency: Latency, names: Sequence[str] = ("p50", "p90", "p95")) -> float:
    """Return the largest half-width of these quantiles' intervals, as a share of the quantile; infinite without one."""
    if not all(name in latency.intervals_ms for name in names):
        return math.inf
    intervals = {name: latency.intervals_ms[name] for name in names}
    widths: list[float] = [(high - low) / 2 / getattr(latency, f"{name}_ms") for name, (low, high) in intervals.items()]
    return max(widths)


def _binomial(count: int, share: float) -> np.ndarray:
    """Return P(0), P(1) … P(count) of a binomial distribution."""
    log_choose = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(count + 1)]
    k = np.arange(count + 1)
    shares: np.ndarray = np.exp(np.asarray(log_choose) + k * math.log(share) + (count - k) * math.log1p(-share))
    return shares

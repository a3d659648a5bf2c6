"""When a device is warm, and whether it stayed the same: found in the measured latencies, not guessed.

The *pace* is one number per round: the median over the degrees of log(latency / the degree's median). Every degree
runs once a round, so what they share is the device's doing.

The warm-up is found by MSER-5 (White, *An effective truncation heuristic for bias reduction in simulation output*,
Simulation 69, 1997; White, Cobb and Spratt 2000): the truncation that makes the standard error of the rest smallest,
over groups of five rounds. One thing differs: a group is its median, because one slow round is not a sign of warm-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["WARMUP_RULE", "Steadiness", "find_shift", "judge", "pace"]

WARMUP_RULE = "MSER-5 on the median over degrees"
_GROUP = 5
_SHIFT = 0.05


@dataclass(frozen=True)
class Steadiness:
    """What the rounds say about the device.

    Attributes:
        warmup_rounds: Rounds to drop at the start.
        steady: A steady part was found; False while the best truncation is as late as is allowed.
        warmup_factor: Latency during the warm-up over latency after it; 1 without warm-up.
        shift_round: Round, counted after the warm-up, where the latency stepped by more than 5 %; None without one.
        shift_factor: Latency after that step over latency before it.
    """

    warmup_rounds: int
    steady: bool
    warmup_factor: float = 1.0
    shift_round: int | None = None
    shift_factor: float = 1.0


def pace(rounds_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the pace per round. ``rounds_ms``: [rounds, degrees], milliseconds."""
    return np.median(np.log(rounds_ms / np.median(rounds_ms, axis=0)), axis=1)


def judge(rounds_ms: NDArray[np.float64]) -> Steadiness:
    """Find the warm-up, and a step of the latency after it.

    Args:
        rounds_ms: [rounds, degrees], milliseconds, in the order of measurement.
    """
    series = pace(rounds_ms)
    groups = _medians(series)
    half = len(groups) // 2
    # Fewer than four groups say nothing: drop nothing.
    cut = _mser(groups, half) if len(groups) >= 4 else 0
    warmup = cut * _GROUP
    factor = math.exp(float(np.median(series[:warmup]) - np.median(series[warmup:]))) if warmup else 1.0
    shift_round, shift = find_shift(series[warmup:])
    return Steadiness(warmup, cut < half or half == 0, factor, shift_round, shift)


def find_shift(series: NDArray[np.float64]) -> tuple[int | None, float]:
    """Return where a pace steps by more than 5 %, and the factor of that step; None and 1 where it does not.

    The split is where a step explains most of the variance (least squares). Its size is the difference of the medians,
    and counts when it stands out of the noise: more than three times the median deviation inside the two parts.
    """
    groups = _medians(series)
    least = max(len(groups) // 10, 3)
    if len(groups) < 2 * least:
        return None, 1.0
    splits = range(least, len(groups) - least + 1)
    gains = [k * (len(groups) - k) * float(groups[k:].mean() - groups[:k].mean()) ** 2 for k in splits]
    split = splits[int(np.argmax(gains))]
    step = float(np.median(groups[split:]) - np.median(groups[:split]))
    inside = np.concatenate([part - np.median(part) for part in (groups[:split], groups[split:])])
    if abs(step) < max(math.log1p(_SHIFT), 3 * float(np.median(np.abs(inside)))):
        return None, 1.0
    return split * _GROUP, math.exp(step)


def _medians(series: NDArray[np.float64]) -> NDArray[np.float64]:
    count = len(series) // _GROUP
    return np.asarray(np.median(series[: count * _GROUP].reshape(count, _GROUP), axis=1))


def _mser(groups: NDArray[np.float64], latest: int) -> int:
    """Return how many groups to drop so that the squared standard error of the rest's mean is smallest."""
    rests = [groups[cut:] for cut in range(latest + 1)]
    return int(np.argmin([float(np.var(rest)) / len(rest) for rest in rests]))

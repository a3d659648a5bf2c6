"""Latency per degree: interleaved in random order, warm-up found, until the intervals are narrow enough."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.calibration.device_state.reader import CombinedReader
from tocom.calibration.device_state.recorder import StateRecorder
from tocom.calibration.latency.quantiles import samples_needed, summarize, widest_interval
from tocom.calibration.latency.steady import WARMUP_RULE, Steadiness, judge
from tocom.errors import RequestError
from tocom.formats.measurements import Latency, StateLog
from tocom.formats.pixels import random_images
from tocom.runtime import Runtime
from tocom.system.numbers import is_integer, is_number
from tocom.system.progress import Progress, silent

__all__ = ["LatencyRun", "check_precision", "run_latency"]

_JUDGE_EVERY = 10


@dataclass(frozen=True)
class LatencyRun:
    """One run of measurement.

    Attributes:
        degrees: Degrees, in the order of the columns.
        rounds_ms: [rounds, degrees], milliseconds; every sample in the order of measurement, warm-up included.
        seconds: [rounds], when each round ended, since the start.
        steadiness: The warm-up, and a step of the latency after it.
        stopped: Why it ended, in words.
        state: State of the device meanwhile.
    """

    degrees: tuple[int, ...]
    rounds_ms: NDArray[np.float64]
    seconds: NDArray[np.float64]
    steadiness: Steadiness
    stopped: str
    state: StateLog

    @property
    def latency(self) -> dict[int, Latency]:
        """Quantiles per degree; the warm-up does not count, everything after it does."""
        return _latencies(self.degrees, self.rounds_ms[self.steadiness.warmup_rounds :])

    def described(self) -> dict[str, Any]:
        """Return how it was measured, as plain JSON content for the profile."""
        return {
            "how": "interleaved over the degrees in random order",
            "rounds": len(self.rounds_ms),
            "warmup_rounds": self.steadiness.warmup_rounds,
            "warmup_rule": WARMUP_RULE,
            "warmup_factor": round(self.steadiness.warmup_factor, 4),
            "stopped": self.stopped,
            "seconds": round(float(self.seconds[-1]), 1),
        }


def run_latency(
    runtime: Runtime,
    *,
    samples: int = 400,
    tolerance: float = 0.03,
    batch: int | None = None,
    seed: int = 0,
    reader: CombinedReader | None = None,
    progress: Progress = silent,
) -> LatencyRun:
    """Measure the latency of every degree.

    Every round runs each degree once, in an order drawn again; so a slow phase of the device hits every degree alike.
    Rounds go on until every p50, p90 and p95 has a 95 % interval within ``± tolerance``, or ``samples`` are kept.

    Args:
        runtime: A warm runtime.
        samples: Most timed inferences per degree after the warm-up.
        tolerance: Half-width of the intervals that is narrow enough, as a share of the quantile.
        batch: Images per inference; None takes the bundle's optimal batch.
        seed: Seed of the order and the images' values.
        reader: Reads the device's state between rounds; None reads nothing.
        progress: Called after every round; the steps in all are what the intervals let expect.

    Raises:
        RequestError: ``samples``, ``tolerance`` or ``batch`` is out of its range.
        EngineError: A degree does not run.
    """
    check_precision(samples, tolerance)
    generator = np.random.default_rng(seed)
    chosen = tuple(runtime.degrees)
    size = runtime.bundle.batch[1] if batch is None else batch
    images = random_images(runtime.bundle.manifest["input"], size, generator)
    recorder = StateRecorder(reader)
    rounds: list[list[float]] = []
    ends: list[float] = []
    expected, stopped, begin = samples, "", time.perf_counter()
    while not stopped:
        rounds.append([0.0] * len(chosen))
        for index in generator.permutation(len(chosen)):
            result = runtime.infer(images, degree=chosen[int(index)])
            rounds[-1][int(index)] = result.latency_ms - result.queue_ms
        ends.append(time.perf_counter() - begin)
        recorder.tick()
        if len(rounds) % _JUDGE_EVERY == 0 or len(rounds) >= samples:
            expected, stopped = _judged(chosen, np.asarray(rounds), samples, tolerance)
        progress("latency", len(rounds), len(rounds) if stopped else max(expected, len(rounds) + 1))
    measured = np.asarray(rounds)
    steadiness = judge(measured)
    state = recorder.finish(_marks(steadiness, ends))
    return LatencyRun(chosen, measured, np.asarray(ends), steadiness, stopped, state)


def check_precision(samples: Any, tolerance: Any) -> None:
    """Raise RequestError where one of these parameters of :func:`run_latency` is out of its range."""
    if not is_integer(samples, 1):
        raise RequestError(f"The 'samples' parameter must be an integer >= 1. Got {samples!r} instead.")
    if not is_number(tolerance) or not 0 < tolerance < 1:
        raise RequestError(f"The 'tolerance' parameter must be a share between 0 and 1. Got {tolerance!r} instead.")


def _judged(
    degrees: tuple[int, ...], rounds_ms: NDArray[np.float64], samples: int, tolerance: float
) -> tuple[int, str]:
    """Return the rounds to expect in all, and why to stop; no reason means to go on."""
    steadiness = judge(rounds_ms)
    kept = len(rounds_ms) - steadiness.warmup_rounds
    widest = max(map(widest_interval, _latencies(degrees, rounds_ms[steadiness.warmup_rounds :]).values()))
    if steadiness.steady and widest <= tolerance:
        return len(rounds_ms), f"all intervals within ± {tolerance:.1%} (widest {widest:.1%})"
    if kept >= samples:
        # At most half of the rounds are warm-up, so this comes after twice the samples at the latest.
        found = "some have no interval" if widest == float("inf") else f"widest interval ± {widest:.1%}"
        return len(rounds_ms), f"{samples} samples per degree reached ({found}, wanted ± {tolerance:.1%})"
    # An interval shrinks with the square root of the samples.
    needed = kept * min((widest / tolerance) ** 2, 1e6) if widest < float("inf") else samples_needed(0.95)
    return steadiness.warmup_rounds + min(max(int(needed), kept + 1), samples), ""


def _latencies(degrees: tuple[int, ...], rounds_ms: NDArray[np.float64]) -> dict[int, Latency]:
    return {degree: summarize(rounds_ms[:, index].tolist()) for index, degree in enumerate(degrees)}


def _marks(steadiness: Steadiness, ends: Sequence[float]) -> list[str]:
    """Return what the latencies themselves say about a device that did not stay the same."""
    marks = []
    if steadiness.warmup_factor < 1 / 1.05:
        marks.append(
            f"the device was {1 / steadiness.warmup_factor:.2f} times faster during the first "
            f"{ends[steadiness.warmup_rounds - 1]:.1f} s: heat or a boost that ended; the profile holds what came after"
        )
    if steadiness.shift_round is not None:
        at = ends[steadiness.warmup_rounds + steadiness.shift_round - 1]
        marks.append(
            f"the latency of all degrees changed by {steadiness.shift_factor - 1:+.0%} after {at:.1f} s: the device's "
            "state or load changed in the middle"
        )
    return marks

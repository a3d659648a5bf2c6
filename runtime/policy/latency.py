"""The latency model: what each degree will take, from the profile and from what was observed since.

prediction(degree, q) = base(degree) · scale(degree, batch) · drift · tail(q)

- *base* is the degree's median in the profile.
- *scale* corrects the profile per degree and batch. It learns from the first observations after a change of degree:
  what the ratio does there comes from the degrees, what it does while a degree stays comes from the device.
- *drift* is one factor for all degrees: a clock drop seen at one degree moves the prediction of every other one.
  It follows the median of the last few observations, and jumps there when that median leaves the noise.
- *tail* is the quantile of recent observations over their prediction; it starts from the profile's own quantiles.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tocom.formats.profile import Latency

__all__ = ["LatencyModel", "ModelConfig"]


@dataclass(frozen=True)
class ModelConfig:
    """How the latency model learns.

    Attributes:
        recent: Observations whose median the drift follows. Odd; a step is seen after half of them.
        jump: Relative distance between that median and the drift that counts as a step of the device.
        drift_rate: Share of a smaller distance that one observation closes.
        scale_rate: Share of a degree's own correction that one observation after a change of degree closes.
        scale_limit: Relative distance up to which an observation corrects a degree.
        settle: Observations after a change of degree that correct it.
        window: Observations that the tail is taken from.
        resort: Observations after which it is taken again.
    """

    recent: int = 5
    jump: float = 0.12
    drift_rate: float = 0.1
    scale_rate: float = 0.03
    scale_limit: float = 0.25
    settle: int = 5
    window: int = 192
    resort: int = 8


class LatencyModel:
    """Online latency quantiles per degree with one shared drift factor. Not thread-safe: the caller holds a lock.

    Args:
        base: The profile's latency per degree, milliseconds.
        batch: Images per request in the profile.
        config: How it learns.
        batched: The same of other batch sizes that were measured.

    Attributes:
        drift: Speed of the device: latency over the profile's, common to all degrees.
        ratios: What the last observations took over what was predicted of them, ascending; of ``window`` numbers.
    """

    def __init__(
        self,
        base: Mapping[int, Latency],
        *,
        batch: int = 1,
        config: ModelConfig | None = None,
        batched: Mapping[int, Mapping[int, Latency]] | None = None,
    ) -> None:
        self.config = config or ModelConfig()
        self.batch = batch
        self.drift = 1.0
        self._base = {degree: latency.p50_ms for degree, latency in base.items()}
        self._units = {
            (degree, size): latency.p50_ms
            for size, measured in (batched or {}).items()
            for degree, latency in measured.items()
            if degree in self._base
        }
        # What was measured need not be seen first.
        self._first_seen = dict.fromkeys(self._units, self.config.recent)
        self._last: tuple[int, int] | None = None
        self._to_correct = 0
        self._observations = 0
        self._recent = deque(_prior_ratios(base, self.config.window), maxlen=self.config.window)
        self._sort()

    @property
    def degrees(self) -> tuple[int, ...]:
        """The degrees that it predicts, ascending."""
        return tuple(sorted(self._base))

    def unit_ms(self, degree: int, batch: int) -> float:
        """Return the median at the profile's speed, milliseconds."""
        # Linear in the batch until seen: an upper estimate, since larger batches use the device better.
        return self._units.setdefault((degree, batch), self._base[degree] * batch / self.batch)

    def tail(self, quantile: float) -> float:
        """Return the quantile of observed over typical latency."""
        return self.ratios[self.rank(quantile)]

    def rank(self, quantile: float) -> int:
        """Return the index of a quantile in :attr:`ratios`."""
        return math.ceil(quantile * self.config.window) - 1

    def predict_ms(self, degree: int, quantile: float, batch: int = 1) -> float:
        """Return the predicted latency at a quantile, milliseconds."""
        return self.unit_ms(degree, batch) * self.drift * self.tail(quantile)

    def observe(self, degree: int, latency_ms: float, batch: int = 1) -> bool:
        """Learn from one inference; return whether :meth:`unit_ms` changed.

        Args:
            degree: Degree that ran.
            latency_ms: What it took, queueing excluded.
            batch: Images in it.
        """
        config, key = self.config, (degree, batch)
        self._observations += 1
        ratio = latency_ms / (self.unit_ms(degree, batch) * self.drift)
        if key != self._last:
            # Before the very first request nothing changed.
            self._to_correct = 0 if self._last is None else config.settle
            self._last = key
        if batch != self.batch and self._first_seen.get(key, 0) < config.recent:
            self._see_first(key, ratio)
            return True
        corrected = self._to_correct > 0 and self._correct(key, ratio)
        self._recent.append(ratio)
        self._unsorted += 1
        if self._unsorted >= config.resort:
            self._sort()
        away = ratio - 1.0
        if -config.jump <= away <= config.jump:
            self.drift *= 1.0 + config.drift_rate * away
        else:
            self._look_for_jump()
        return corrected

    def state(self) -> dict[str, Any]:
        """Return what it has learned, as plain JSON content."""
        return {
            "drift": self.drift,
            "tail_p95": self.tail(0.95),
            "scale": {
                f"degree {degree}, batch {batch}": unit_ms / self._base[degree]
                for (degree, batch), unit_ms in self._units.items()
            },
            "observations": self._observations,
        }

    def _see_first(self, key: tuple[int, int], ratio: float) -> None:
        """Take the mean of the first observations as the scale of a degree and batch that no profile covers."""
        count = self._first_seen[key] = self._first_seen.get(key, 0) + 1
        self._units[key] *= ratio ** (1.0 / count)

    def _correct(self, key: tuple[int, int], ratio: float) -> bool:
        """Correct the scale of a degree and batch; return whether it changed."""
        self._to_correct -= 1
        # A profile is rarely wrong by more than the limit; beyond it, it is a step of the device: the drift's.
        if abs(ratio - 1.0) > self.config.scale_limit:
            return False
        self._units[key] *= 1.0 + self.config.scale_rate * (ratio - 1.0)
        return True

    def _look_for_jump(self) -> None:
        """Take a step of the device: the last ratios belong to its new speed and must not count as tail of the old."""
        last = list(self._recent)[-self.config.recent :]
        median = sorted(last)[self.config.recent // 2]
        if abs(median - 1.0) > self.config.jump:
            self.drift *= median
            for _ in last:
                self._recent.pop()
            self._recent.extend(ratio / median for ratio in last)
            self._sort()

    def _sort(self) -> None:
        self.ratios, self._unsorted = sorted(self._recent), 0


def _prior_ratios(base: Mapping[int, Latency], count: int) -> list[float]:
    """Return ``count`` ratios over the median whose quantiles are the profile's, averaged over the degrees."""
    quantiles = [(x.p50_ms, x.p90_ms, x.p95_ms, x.p99_ms) for x in base.values()]
    means = np.mean([np.divide(each, each[0]) for each in quantiles], axis=0)
    ratios: list[float] = np.interp((np.arange(count) + 0.5) / count, (0.5, 0.9, 0.95, 0.99), means).tolist()
    # Observations replace the oldest first; in this fixed random order the quantiles stay true while they do.
    random.Random(0).shuffle(ratios)
    return ratios

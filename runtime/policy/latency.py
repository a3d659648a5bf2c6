"""The latency model: what each degree will take, from the profile and from what was observed since.

prediction(degree, q) = base(degree) · scale(degree, batch) · drift · tail(q)

- *base* is the degree's median in the profile.
- *scale* corrects the profile per degree and batch. It learns from the first observations after a change of degree:
  what the ratio does there is the degrees' doing, what it does while a degree stays is the device's.
- *drift* is one factor for all degrees: a clock drop seen at one degree moves the prediction of every other one.
  It follows the median of the last few observations, and jumps there when that median leaves the noise.
- *tail* is the quantile of recent observations over their prediction; it starts from the profile's own quantiles.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tocom.formats.profile import Latency

__all__ = ["LatencyModel", "ModelConfig"]

_TAKE_IN_EVERY = 8


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
    """

    recent: int = 5
    jump: float = 0.12
    drift_rate: float = 0.1
    scale_rate: float = 0.03
    scale_limit: float = 0.25
    settle: int = 5
    window: int = 192


class LatencyModel:
    """Online latency quantiles per degree with one shared drift factor. Not thread-safe: the caller holds a lock.

    Args:
        base: The profile's latency per degree, milliseconds.
        batch: Images per request in the profile.
        quantile: Quantile that :attr:`factor` stands for.
        config: How it learns.

    Attributes:
        drift: Speed of the device: latency over the profile's, common to all degrees.
        factor: Drift times tail: what turns :meth:`unit_ms` into the predicted quantile.
        margin: The most that observations which :meth:`calm_ms` lets wait change ``factor`` by.
        revision: Changes whenever :meth:`unit_ms` does.
    """

    def __init__(
        self,
        base: Mapping[int, Latency],
        *,
        batch: int = 1,
        quantile: float = 0.95,
        config: ModelConfig | None = None,
    ) -> None:
        self.config = config or ModelConfig()
        self.batch = batch
        self.drift = 1.0
        self.revision = 0
        self._base = {degree: latency.p50_ms for degree, latency in base.items()}
        self._scale: dict[tuple[int, int], float] = {}
        self._seen: dict[tuple[int, int], int] = {}
        # The degree and batch of the last observation, what they take at the profile's speed, and whether they have
        # been the same for long enough to say nothing more about the degree's own scale.
        self._degree: int | None = None
        self._batch = 0
        self._unit = 1.0
        self._settled = False
        self._since_change = 0
        self._observations = 0
        self._recent: deque[float] = deque(maxlen=self.config.recent)
        # The last ratios in a ring, the same in order, and what goes into both next: only now and then, because after
        # an inference the caches are cold, and every object that is touched costs.
        self._window = _prior_ratios(base, self.config.window)
        self._sorted = sorted(self._window)
        self._fresh: list[float] = []
        self._place = 0
        # Observations in a row within the noise, and what counts as that.
        self._calm = 0
        self._recent_size = self.config.recent
        self._low, self._high = 1.0 - self.config.jump, 1.0 + self.config.jump
        # A single observation is noisier than a median of five: half the rate gives about the same smoothness.
        self._calm_rate = self.config.drift_rate / 2
        self.margin = (1.0 - self._calm_rate * self.config.jump / 2) ** -_TAKE_IN_EVERY
        self._quantile = quantile
        self._tail = self.tail(quantile)
        self.factor = self.drift * self._tail

    @property
    def degrees(self) -> tuple[int, ...]:
        """The degrees that it predicts, ascending."""
        return tuple(sorted(self._base))

    def unit_ms(self, degree: int, batch: int) -> float:
        """Return the median at the profile's speed, milliseconds; it changes only with :attr:`revision`."""
        scale = self._scale.get((degree, batch))
        if scale is None:
            # Linear in the batch until seen: an upper estimate, since larger batches use the device better.
            scale = batch / self.batch
        return self._base[degree] * scale

    def typical_ms(self, degree: int, batch: int) -> float:
        """Return the predicted median without the tail, milliseconds."""
        return self.unit_ms(degree, batch) * self.drift

    def tail(self, quantile: float) -> float:
        """Return the quantile of observed over typical latency."""
        return self._sorted[max(math.ceil(quantile * self.config.window) - 1, 0)]

    def predict_ms(self, degree: int, quantile: float, batch: int = 1) -> float:
        """Return the predicted latency at a quantile, milliseconds."""
        return self.typical_ms(degree, batch) * self.tail(quantile)

    def observe(self, degree: int, latency_ms: float, batch: int = 1) -> None:
        """Learn from one inference.

        Args:
            degree: Degree that ran.
            latency_ms: What it took, queueing excluded.
            batch: Images in it.
        """
        self._observations += 1
        if self._settled and degree == self._degree and batch == self._batch:
            ratio = latency_ms / (self._unit * self.drift)
        else:
            found = self._after_change(degree, batch, latency_ms)
            if found is None:
                return
            ratio = found
        if self._calm >= self._recent_size and self._low <= ratio <= self._high:
            # Nothing odd lately: the same step towards the observation itself, without looking at the last few.
            self.drift *= 1.0 + self._calm_rate * (ratio - 1.0)
        else:
            self._follow(ratio)
        fresh = self._fresh
        if len(fresh) == _TAKE_IN_EVERY:  # not with the last of them: the work of many is spread over two
            self._take_in()
        fresh.append(ratio)
        self.factor = self.drift * self._tail

    def calm_ms(self, degree: int | None) -> tuple[int, float, float, int]:
        """Return which observations of a degree would say little: batch, least latency, first beyond, and how many.

        Up to that many change the prediction by no more than :attr:`margin`. There are none unless the last
        observations were calm and of this degree.
        """
        if degree != self._degree or not self._settled or self._calm < self._recent_size:
            return 0, 0.0, 0.0, 0
        # Half the noise: so the drift cannot move away so far that one of them would be beyond it after all.
        typical, room = self._unit * self.drift, self.config.jump / 2
        most = _TAKE_IN_EVERY - len(self._fresh)
        return self._batch, typical * (1.0 - room), typical * (1.0 + room), most

    def state(self) -> dict[str, Any]:
        """Return what it has learned, as plain JSON content."""
        return {
            "drift": self.drift,
            "tail_p95": self.tail(0.95),
            "scale": {f"degree {degree}, batch {batch}": scale for (degree, batch), scale in self._scale.items()},
            "observations": self._observations,
        }

    def _after_change(self, degree: int, batch: int, latency_ms: float) -> float | None:
        """Return the ratio of an observation soon after the degree or batch changed; correct the degree's scale.

        None means that it went into the scale of a batch size that no profile covers, and says nothing about drift.
        """
        key = (degree, batch)
        ratio = latency_ms / (self.unit_ms(degree, batch) * self.drift)
        if (degree, batch) != (self._degree, self._batch):
            # Before the very first request nothing changed.
            self._since_change = self.config.settle if self._degree is None else 0
            self._degree, self._batch = degree, batch
        scale = self._scale.get(key, batch / self.batch)
        seen = self._seen.get(key, 0)
        fresh = batch != self.batch and seen < self.config.recent
        if fresh:
            self._seen[key] = seen + 1
            self._scale[key] = scale * (ratio if seen == 0 else ratio ** (1.0 / (seen + 1)))
            self.revision += 1
        elif self._since_change < self.config.settle:
            self._since_change += 1
            # A profile is rarely wrong by more than the limit; beyond lies a step of the device, left to the drift.
            if abs(ratio - 1.0) <= self.config.scale_limit:
                self._scale[key] = scale * (1.0 + self.config.scale_rate * (ratio - 1.0))
                self.revision += 1
        self._unit = self.unit_ms(degree, batch)
        self._settled = not fresh and self._since_change >= self.config.settle
        return None if fresh else ratio

    def _follow(self, ratio: float) -> None:
        """Follow the median of the last observations; jump to it when it leaves the noise."""
        recent, config = self._recent, self.config
        if self._calm >= config.recent:
            # The calm ones before were not kept: they lay around the drift.
            recent.extend([self.drift] * config.recent)
        recent.append(ratio * self.drift)
        self._calm = self._calm + 1 if self._low <= ratio <= self._high else 0
        if len(recent) < config.recent:
            return
        median = sorted(recent)[config.recent // 2]
        distance = median / self.drift - 1.0
        if abs(distance) <= config.jump:
            self.drift *= 1.0 + config.drift_rate * distance
            return
        # A step: what was observed since belongs to the new speed, so it must not count as tail of the old one.
        self._take_in()
        before, self.drift = self.drift, median
        for back in range(1, config.recent):
            self._window[self._place - back] *= before / median
        self._sorted = sorted(self._window)
        self._tail = self.tail(self._quantile)

    def _take_in(self) -> None:
        """Move the fresh ratios into the window."""
        window, ordered, place = self._window, self._sorted, self._place
        for ratio in self._fresh:
            # Sorting all of them would cost several times as much.
            del ordered[bisect_left(ordered, window[place])]
            insort(ordered, ratio)
            window[place] = ratio
            place = (place + 1) % len(window)
        self._place = place
        self._fresh.clear()
        self._tail = self.tail(self._quantile)


def _prior_ratios(base: Mapping[int, Latency], count: int) -> list[float]:
    """Return ``count`` ratios over the median whose quantiles are the profile's, averaged over the degrees."""
    shares = (0.5, 0.9, 0.95, 0.99)
    means = [
        sum(values) / len(base)
        for values in zip(
            *((1.0, x.p90_ms / x.p50_ms, x.p95_ms / x.p50_ms, x.p99_ms / x.p50_ms) for x in base.values()), strict=True
        )
    ]
    ratios = []
    for index in range(count):
        share = (index + 0.5) / count
        upper = next((place for place, limit in enumerate(shares) if share <= limit), len(shares) - 1)
        if upper == 0:
            ratios.append(1.0)
            continue
        low, high = shares[upper - 1], shares[upper]
        weight = min((share - low) / (high - low), 1.0)
        ratios.append(means[upper - 1] * (1 - weight) + means[upper] * weight)
    # Observations replace the oldest first; in this fixed random order the quantiles stay true while they do.
    random.Random(0).shuffle(ratios)
    return ratios

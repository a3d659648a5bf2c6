"""Counters and recent latency quantiles of a runtime."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

__all__ = ["Counters"]

_RECENT = 1000


class Counters:
    """What was answered so far. Not thread-safe: the runtime holds its lock."""

    def __init__(self) -> None:
        self.answers: dict[int, int] = {}
        self.misses = 0
        self.infeasible = 0
        self.budgeted = 0
        self.switches = 0
        self.failures = 0
        self.reloads = 0
        self.frames_dropped = 0
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)

    def record(
        self,
        degree: int,
        latency_ms: float,
        queue_ms: float,
        budget_ms: float | None,
        met: bool,
        feasible: bool,
        switched: bool,
    ) -> None:
        """Count one answer."""
        self.switches += switched
        self.answers[degree] = self.answers.get(degree, 0) + 1
        self._recent.append((latency_ms, queue_ms))
        if budget_ms is not None:
            self.budgeted += 1
            self.misses += not met
            self.infeasible += not feasible

    def snapshot(self) -> dict[str, Any]:
        """Return the counters as plain JSON content."""
        return {
            "requests": sum(self.answers.values()),
            "answers": {str(degree): count for degree, count in sorted(self.answers.items())},
            "budgeted": self.budgeted,
            "misses": self.misses,
            "miss_share": self.misses / self.budgeted if self.budgeted else 0.0,
            "infeasible": self.infeasible,
            "switches": self.switches,
            "failures": self.failures,
            "reloads": self.reloads,
            "frames_dropped": self.frames_dropped,
            "latency_ms": _quantiles([latency_ms for latency_ms, _ in self._recent]),
            "queue_ms": _quantiles([queue_ms for _, queue_ms in self._recent]),
        }


def _quantiles(values: list[float]) -> dict[str, float]:
    """Return the quantiles of the recent values (nearest rank); empty without any."""
    if not values:
        return {}
    ordered = sorted(values)
    return {f"p{share}": ordered[max(math.ceil(share / 100 * len(ordered)) - 1, 0)] for share in (50, 90, 95, 99)}

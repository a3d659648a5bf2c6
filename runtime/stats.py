"""Counters and recent latency quantiles of a runtime."""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import Any

from tocom.errors import BudgetError, EngineError

__all__ = ["Counters"]

_RECENT = 1000


class Counters:
    """What was answered so far. The runtime holds its lock, except for :meth:`drop` and :meth:`fail`."""

    def __init__(self) -> None:
        self.answers: dict[int, int] = {}
        self.misses = 0
        self.infeasible = 0
        self.budgeted = 0
        self.switches = 0
        self.failures = 0
        self.refusals = 0
        self.reloads = 0
        self.together = 0
        # Readers drop and requests fail beside the one that runs, and a signal's handler may come in between.
        self._lock = threading.RLock()
        self.dropped: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)

    def drop(self, source: str) -> None:
        """Count a frame that a newer one of its source replaced, or that could not be read."""
        with self._lock:
            self.dropped[source] = self.dropped.get(source, 0) + 1

    def fail(self, error: Exception) -> None:
        """Count a request that was not answered, by the kind of its error."""
        kind = type(error).__name__
        with self._lock:
            self.errors[kind] = self.errors.get(kind, 0) + 1
            self.failures += isinstance(error, EngineError)
            self.refusals += isinstance(error, BudgetError)

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
        self.answers[degree] = self.answers.get(degree, 0) + 1
        self._recent.append((latency_ms, queue_ms))
        if switched:
            self.switches += 1
        if budget_ms is not None:
            self.budgeted += 1
            if not met:
                self.misses += 1
            if not feasible:
                self.infeasible += 1

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
            "answered_together": self.together,
            "refusals": self.refusals,
            "errors": dict(sorted(list(self.errors.items()))),
            "frames_dropped": sum(list(self.dropped.values())),
            "dropped": dict(sorted(list(self.dropped.items()))),
            "latency_ms": _quantiles([latency_ms for latency_ms, _ in self._recent]),
            "queue_ms": _quantiles([queue_ms for _, queue_ms in self._recent]),
        }


def _quantiles(values: list[float]) -> dict[str, float]:
    """Return the quantiles of the recent values (nearest rank); empty without any."""
    if not values:
        return {}
    ordered = sorted(values)
    return {f"p{share}": ordered[max(math.ceil(share / 100 * len(ordered)) - 1, 0)] for share in (50, 90, 95, 99)}

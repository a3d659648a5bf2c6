"""What one request gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

__all__ = ["Result"]


@dataclass(slots=True)
class Result:
    """The answer to one request.

    Attributes:
        outputs: Per output name, [batch, …] float32; arrays of this result alone.
        degree: Degree that answered.
        latency_ms: From the call to the answer, queueing included.
        queue_ms: Part of it spent waiting for the device.
        met_budget: ``latency_ms`` is within the budget, or there was none.
        predicted_ms: Predicted latency of the degree at the policy's quantile, queueing excluded.
        budget_ms: The request's budget; None without one.
        feasible: The policy expected the degree to meet the budget.
    """

    outputs: dict[str, NDArray[Any]]
    degree: int
    latency_ms: float
    queue_ms: float
    met_budget: bool
    predicted_ms: float
    budget_ms: float | None
    feasible: bool

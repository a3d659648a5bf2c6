"""What one request gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import RequestError

__all__ = ["RankedClass", "Result"]


@dataclass(frozen=True, slots=True)
class RankedClass:
    """One class of an answer.

    Attributes:
        index: Its index in the logits.
        label: Its name; None where the bundle has no labels.
        probability: Its softmax over all classes.
    """

    index: int
    label: str | None
    probability: float


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
        labels: The names of the model's classes, or None.
    """

    outputs: dict[str, NDArray[Any]]
    degree: int
    latency_ms: float
    queue_ms: float
    met_budget: bool
    predicted_ms: float
    budget_ms: float | None
    feasible: bool
    labels: list[str] | None = None

    def top(self, k: int = 5, *, image: int = 0) -> list[RankedClass]:
        """Return the most probable classes of an image, the most probable first.

        Args:
            k: How many; fewer where the model has fewer.
            image: Its index in the batch.

        Raises:
            RequestError: The model gives no logits, ``k`` is less than 1, or the batch holds no such image.
        """
        if "logits" not in self.outputs:
            raise RequestError(f"Result.top() needs logits. The model gives {', '.join(self.outputs)} alone.")
        logits = self.outputs["logits"]
        if not _is_integer(k) or k < 1:
            raise RequestError(f"The 'k' parameter must be an integer >= 1. Got {k!r} instead.")
        if not _is_integer(image) or not -len(logits) <= image < len(logits):
            raise RequestError(
                f"The 'image' parameter must be an integer less than the batch, {len(logits)}. Got {image!r}."
            )
        values = logits[image].astype(np.float64)
        weights = np.exp(values - values.max())
        # Of equal ones the lower index first.
        best = np.argsort(-values, kind="stable")[:k].tolist()
        names = self.labels
        return [RankedClass(i, None if names is None else names[i], float(weights[i] / weights.sum())) for i in best]


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)

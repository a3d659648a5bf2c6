"""Stream images through the runtime while the budget steps up and down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tocom.formats.profile import Profile
from tocom.runtime import Runtime
from tocom.system.progress import Progress, silent

__all__ = ["budget_steps", "stream"]


def budget_steps(profile: Profile) -> list[float]:
    """Return budgets in milliseconds that step down and up again over what this device can do."""
    p95 = [entry.latency.p95_ms for entry in profile.degrees.values()]
    slow, fast = max(p95), min(p95)
    shares = (1.25, 0.75, 0.4, 0.05, 0.4, 0.75, 1.25)
    return [round(fast * 1.1 + share * (slow - fast), 2) for share in shares]


def stream(
    runtime: Runtime,
    images: Sequence[np.ndarray],
    budgets: Sequence[float],
    per_budget: int,
    progress: Progress = silent,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Send one image after the other, ``per_budget`` under each budget.

    Args:
        runtime: Warm.
        images: Each [1, channels, height, width], float32; taken in turn.
        budgets: Milliseconds.
        per_budget: Requests under each.
        progress: Called with what is done, the requests done and all.

    Returns:
        Per request: budget, latency, degree, met; and per budget: degree taken, p95, share that met it.
    """
    requests, summary = [], []
    for phase, budget in enumerate(budgets):
        for _ in range(per_budget):
            result = runtime.infer(images[len(requests) % len(images)], budget_ms=budget)
            requests.append(
                {
                    "budget_ms": budget,
                    "latency_ms": round(result.latency_ms, 3),
                    "degree": result.degree,
                    "met": result.met_budget,
                }
            )
            progress("requests", len(requests), len(budgets) * per_budget)
        taken = requests[phase * per_budget :]
        degrees = Counter(request["degree"] for request in taken)
        summary.append(
            {
                "budget_ms": budget,
                "degree": degrees.most_common(1)[0][0],
                "degrees": {str(degree): count for degree, count in sorted(degrees.items())},
                "p95_ms": round(float(np.percentile([request["latency_ms"] for request in taken], 95)), 3),
                "met": round(sum(request["met"] for request in taken) / len(taken), 4),
            }
        )
    return requests, summary

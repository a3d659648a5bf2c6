"""The policy: which degree answers a request. Pure functions of predictions, accuracies and a budget.

A degree is *dominated* when another one is at least as accurate and not slower; dominated degrees are never used.
Of the rest the policy takes the most accurate whose predicted quantile meets the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tocom.errors import BudgetError, RequestError
from tocom.formats.profile import DegreeProfile

__all__ = [
    "GOALS",
    "ON_INFEASIBLE",
    "Candidate",
    "Decision",
    "choose",
    "dominators",
    "frontier",
    "rank_accuracies",
    "rank_for_energy",
]

ON_INFEASIBLE = ("fastest", "raise")
GOALS = ("accuracy", "energy")


class Candidate(NamedTuple):
    """One degree as the policy sees it.

    Attributes:
        degree: Tokens removed in every block.
        accuracy: Any number that orders degrees by how right they are; higher is better.
        latency_ms: Predicted latency at the policy's quantile.
    """

    degree: int
    accuracy: float
    latency_ms: float


@dataclass(slots=True)
class Decision:
    """What the policy decided.

    Attributes:
        degree: Degree to run.
        predicted_ms: Its predicted latency.
        feasible: The prediction meets the budget.
    """

    degree: int
    predicted_ms: float
    feasible: bool


def rank_accuracies(degrees: Sequence[int], measured: Mapping[int, DegreeProfile]) -> dict[int, float]:
    """Return the number that orders the degrees by accuracy: the measured one where all are known, else ``-degree``."""
    known = {degree: measured[degree].accuracy for degree in degrees if degree in measured}
    ranks = {degree: accuracy.rank for degree, accuracy in known.items() if accuracy is not None}
    return ranks if len(ranks) == len(degrees) else {degree: -float(degree) for degree in degrees}


def rank_for_energy(
    accuracy: Mapping[int, float], millijoules: Mapping[int, float], max_loss: float
) -> dict[int, float]:
    """Return the number that orders the degrees by energy, as far as the loss of accuracy allows it.

    Degrees within ``max_loss`` of the most accurate come first, the cheapest before all; then the others by accuracy,
    for budgets that none of the first meets.

    Args:
        accuracy: Share of right answers per degree, 0 … 1.
        millijoules: Millijoules of one inference, per degree.
        max_loss: Largest loss of accuracy, as a share.
    """
    best, most = max(accuracy.values()), max(millijoules.values())
    return {
        degree: 2.0 - millijoules[degree] / most if value >= best - max_loss - 1e-12 else value - 1.0
        for degree, value in accuracy.items()
    }


def frontier(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates that no other one dominates, most accurate (and slowest) first.

    Of two equal ones the lower degree stays.
    """
    dominated = dominators(candidates)
    kept = [candidate for candidate in candidates if candidate.degree not in dominated]
    return tuple(sorted(kept, key=lambda c: c.latency_ms, reverse=True))


def dominators(candidates: Sequence[Candidate]) -> dict[int, int]:
    """Return the dominated degrees, each with the degree of the frontier that is at least as accurate and not slower.

    Of two equal ones the lower degree dominates.
    """
    dominated: dict[int, int] = {}
    best: Candidate | None = None
    for candidate in sorted(candidates, key=lambda c: (-c.accuracy, c.latency_ms, c.degree)):
        if best is None or candidate.latency_ms < best.latency_ms:
            best = candidate
        else:
            dominated[candidate.degree] = best.degree
    return dominated


def choose(
    candidates: Sequence[Candidate],
    budget_ms: float,
    factor: float = 1.0,
    current: int | None = None,
    hysteresis: float = 0.0,
    on_infeasible: str = "fastest",
) -> Decision:
    """Return the most accurate degree whose predicted latency meets the budget.

    Args:
        candidates: A frontier: most accurate and slowest first, fastest last.
        budget_ms: Time that the answer may take from now on.
        factor: What every candidate's latency is multiplied by: the state of the device, which all degrees share.
        current: Degree of the previous answer.
        hysteresis: A degree slower than ``current`` must beat the budget by this share, so that noise around the
            budget does not make the policy flap.
        on_infeasible: ``fastest`` runs the fastest degree when none meets the budget, ``raise`` raises.

    Raises:
        BudgetError: No degree meets the budget and ``on_infeasible`` is ``raise``.
        RequestError: ``on_infeasible`` is neither.
    """
    for candidate in candidates:
        predicted = candidate.latency_ms * factor
        # Only a degree before the current one in the frontier is slower than it, and has to show more room.
        if predicted <= budget_ms and (
            not hysteresis
            or predicted * (1.0 + hysteresis) <= budget_ms
            or not _is_slower(candidate.degree, current, candidates)
        ):
            return Decision(candidate.degree, predicted, True)
    fastest = candidates[-1]
    predicted = fastest.latency_ms * factor
    if on_infeasible == "fastest":
        return Decision(fastest.degree, predicted, False)
    if on_infeasible == "raise":
        raise BudgetError(
            f"No degree meets the budget: {budget_ms:.3f} ms are left, the fastest degree, {fastest.degree}, needs "
            f"{predicted:.3f} ms. Raise the budget, export higher degrees, or use on_infeasible='fastest'."
        )
    raise RequestError(
        f"The 'on_infeasible' parameter must be one of {', '.join(ON_INFEASIBLE)}. Got {on_infeasible!r} instead."
    )


def _is_slower(degree: int, current: int | None, candidates: Sequence[Candidate]) -> bool:
    order = [candidate.degree for candidate in candidates]
    return current is not None and current in order and order.index(degree) < order.index(current)

"""Which degrees to export for a device: the staircase of latency, and the fewest degrees that lose next to nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tocom.errors import CalibrationError, RequestError
from tocom.formats.profile import Profile
from tocom.runtime.policy.choice import Candidate, dominators, frontier, rank_accuracies

__all__ = ["Suggestion", "candidates_of", "check_limits", "suggest_degrees", "with_dominated"]

# Budgets that count: from what the fastest degree needs to a little more than the slowest one.
_HEADROOM = 1.05


@dataclass(frozen=True)
class Suggestion:
    """Degrees to export.

    Attributes:
        degrees: The suggested ones, ascending.
        reasons: Per measured degree, why it is in or out.
        mean_loss: Accuracy lost against all measured degrees, as a share, averaged over the budgets.
        worst_loss: The same at the budget where it is largest.
        budgets_ms: Lowest and highest budget of that average.
        accuracy: What the degrees were ranked by: ``top1``, ``agreement`` or ``degree`` (not measured).
    """

    degrees: tuple[int, ...]
    reasons: Mapping[int, str]
    mean_loss: float
    worst_loss: float
    budgets_ms: tuple[float, float]
    accuracy: str

    def to_json(self) -> dict[str, Any]:
        """Return the suggestion as plain JSON content."""
        reasons = [{"degree": degree, "reason": reason} for degree, reason in self.reasons.items()]
        lists = {"degrees": list(self.degrees), "budgets_ms": list(self.budgets_ms), "reasons": reasons}
        return {**asdict(self), **lists}


def candidates_of(profile: Profile) -> tuple[list[Candidate], str]:
    """Return the degrees as the policy sees them at the profile's speed, and what their accuracies are."""
    entries = profile.degrees
    accuracy = rank_accuracies(list(entries), entries)
    kinds = {"degree" if entry.accuracy is None else entry.accuracy.kind for entry in entries.values()}
    kind = "degree" if "degree" in kinds else kinds.pop() if len(kinds) == 1 else "mixed"
    return [Candidate(degree, accuracy[degree], entry.latency.p50_ms) for degree, entry in entries.items()], kind


def with_dominated(profile: Profile) -> Profile:
    """Return the profile with every degree marked that brings nothing on this device."""
    dominated = dominators(candidates_of(profile)[0])
    degrees = {degree: replace(e, dominated_by=dominated.get(degree)) for degree, e in profile.degrees.items()}
    return replace(profile, degrees=degrees)


def suggest_degrees(profile: Profile, *, max_loss: float = 0.0005, most: int | None = None) -> Suggestion:
    """Return the fewest degrees whose accuracy, averaged over the budgets, is within ``max_loss`` of all of them.

    A budget takes the most accurate degree that meets it, so leaving a degree out costs accuracy only for budgets
    between its own latency and the next slower one's. Those costs add up over the gaps of a subset, so the best subset
    of every size is found exactly, by dynamic programming. Budgets count evenly from the fastest degree's latency to
    the slowest one's. The most accurate and the fastest degree always stay.

    Args:
        profile: A profile of many degrees.
        max_loss: Share of accuracy that may be lost on average; 0.0005 is 0.05 points, half of it for what the
            runtime loses by learning.
        most: Most degrees to suggest, whatever is lost; None sets no limit.

    Raises:
        RequestError: An argument is out of its range.
        CalibrationError: Accuracies are of different kinds.
    """
    check_limits(max_loss, most)
    candidates, kind = candidates_of(profile)
    if kind == "mixed":
        raise CalibrationError("The profile mixes accuracies and agreements. Measure it again with 'tocom calibrate'.")
    if kind == "degree":
        # Nothing but the order is known: treat the steps of accuracy as proportional to those of latency.
        candidates = _by_latency_alone(candidates)
    stairs = frontier(candidates)
    span = max(stairs[0].latency_ms * _HEADROOM - stairs[-1].latency_ms, 1e-9)
    kept, lost = _best_subset(stairs, max_loss * span, most)
    chosen = {stairs[index].degree for index in kept}
    return Suggestion(
        tuple(sorted(chosen)),
        _reasons(candidates, stairs, chosen, kind),
        lost / span,
        max(stair.accuracy - stairs[min(k for k in kept if k >= at)].accuracy for at, stair in enumerate(stairs)),
        (stairs[-1].latency_ms, stairs[0].latency_ms * _HEADROOM),
        kind,
    )


def check_limits(max_loss: float, most: int | None) -> None:
    """Raise RequestError where one of these parameters of :func:`suggest_degrees` is out of its range."""
    if not 0 <= max_loss < 1 or (most is not None and most < 2):
        raise RequestError(f"Expected 0 <= max_loss < 1 and most >= 2. Got {max_loss!r} and {most!r}.")


def _by_latency_alone(candidates: Sequence[Candidate]) -> list[Candidate]:
    slowest = max(candidate.latency_ms for candidate in candidates)
    stairs = {c.degree for c in frontier(candidates)}
    # A dominated degree keeps the worst accuracy there is, so it stays dominated.
    return [c._replace(accuracy=c.latency_ms / slowest * 0.1 if c.degree in stairs else -1.0) for c in candidates]


def _best_subset(stairs: Sequence[Candidate], limit: float, most: int | None) -> tuple[list[int], float]:
    """Return the indices of the smallest subset whose loss is within the limit, and that loss; see the caller.

    ``best[size][last]``: smallest loss over the stairs up to ``last`` with ``size`` of them kept, ``last`` included.
    """
    count = len(stairs)
    best: list[dict[int, tuple[float, list[int]]]] = [{0: (0.0, [0])}]
    while True:
        if count - 1 in best[-1]:
            lost, kept = best[-1][count - 1]
            if lost <= limit or len(best) == most or len(best) == count:
                return kept, lost
        following: dict[int, tuple[float, list[int]]] = {}
        for last, (lost, kept) in best[-1].items():
            for index in range(last + 1, count):
                total = lost + _gap_loss(stairs, last, index)
                if index not in following or total < following[index][0]:
                    following[index] = (total, [*kept, index])
        best.append(following)


def _gap_loss(stairs: Sequence[Candidate], before: int, after: int) -> float:
    """Return what leaving out all between two kept degrees costs: accuracy times milliseconds of budget."""
    return sum(
        (stairs[k - 1].latency_ms - stairs[k].latency_ms) * (stairs[k].accuracy - stairs[after].accuracy)
        for k in range(before + 1, after)
    )


def _reasons(
    candidates: Sequence[Candidate], stairs: Sequence[Candidate], chosen: set[int], kind: str
) -> dict[int, str]:
    dominated = dominators(candidates)
    step = {candidate.degree: index for index, candidate in enumerate(stairs)}
    points = kind != "degree"

    def against(one: Candidate, other: Candidate) -> str:
        faster = f"{1 - other.latency_ms / one.latency_ms:.0%} faster"
        return f"{faster}, {100 * (one.accuracy - other.accuracy):.2f} points lower" if points else faster

    reasons = {}
    for candidate in candidates:
        degree = candidate.degree
        if degree in dominated:
            what = "at least as accurate and not slower" if points else "not slower, with more tokens"
            reasons[degree] = f"out: brings nothing, degree {dominated[degree]} is {what}"
        elif degree not in chosen:
            after = next(other for other in stairs[step[degree] :] if other.degree in chosen)
            reasons[degree] = f"out: degree {after.degree} serves its budgets, {against(candidate, after)}"
        elif step[degree] == 0:
            reasons[degree] = "in: the most accurate"
        else:
            before = [other for other in stairs[: step[degree]] if other.degree in chosen][-1]
            tail = "; the fastest" if step[degree] == len(stairs) - 1 else ""
            reasons[degree] = f"in: {against(before, candidate)} than degree {before.degree}{tail}"
    return reasons

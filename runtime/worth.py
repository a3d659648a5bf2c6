"""How much each degree is worth: by accuracy, by energy, and by what it adds to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tocom.errors import CalibrationError
from tocom.formats.bundle import Bundle
from tocom.formats.profile import Profile
from tocom.runtime.memory.needs import set_value
from tocom.runtime.policy.choice import rank_accuracies, rank_for_energy

__all__ = ["by_value", "expected_latency", "ranks"]


def ranks(
    bundle: Bundle, degrees: Sequence[int], profile: Profile | None, *, goal: str = "accuracy", max_loss: float = 0.0
) -> dict[int, float]:
    """Return the number that the policy orders the degrees by.

    Args:
        bundle: The bundle.
        degrees: The degrees.
        profile: What was measured on this device, if anything.
        goal: ``accuracy`` or ``energy``.
        max_loss: Share of accuracy that the goal may cost.

    Raises:
        CalibrationError: The goal is energy, and the profile does not hold it, or nothing says the accuracy.
    """
    entries = {} if profile is None else profile.degrees
    accuracy = rank_accuracies(degrees, entries)
    if goal == "accuracy":
        return accuracy
    energy = {d: entries[d].energy for d in degrees if d in entries}
    millijoules = {degree: each.millijoules for degree, each in energy.items() if each is not None}
    has_energy, has_accuracy = len(millijoules) == len(degrees), min(accuracy.values()) >= 0
    if not (has_energy and has_accuracy):
        raise CalibrationError(
            f"goal='energy' needs the {'accuracy' if has_energy else 'energy'} of every degree of {bundle.path} on "
            "this device, and no profile here holds it. Measure both: tocom calibrate "
            f"{bundle.path} --images FOLDER. Where the table then shows no mJ, the device does not tell its energy."
        )
    return rank_for_energy(accuracy, millijoules, max_loss)


def expected_latency(bundle: Bundle, degrees: Sequence[int], profile: Profile | None) -> dict[int, float]:
    """Return the profile's p95, or before one is measured the MACs: both order the degrees by cost."""
    if profile is not None:
        return {degree: profile.degrees[degree].latency.p95_ms for degree in degrees}
    return {degree: float(bundle.degrees[degree].macs) for degree in degrees}


def by_value(degrees: Sequence[int], accuracy: Mapping[int, float], latency: Mapping[int, float]) -> list[int]:
    """Return the degrees in the order in which each adds most to the set's value."""
    order: list[int] = []
    while len(order) < len(degrees):
        rest = [degree for degree in degrees if degree not in order]
        order.append(max(rest, key=lambda degree: set_value([*order, degree], accuracy, latency)))
    return order

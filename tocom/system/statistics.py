"""Statistics that several parts need."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

__all__ = ["holm"]

Key = TypeVar("Key", bound=Hashable)


def holm(values: Mapping[Key, float]) -> dict[Key, float]:
    """Return p values corrected for their number (S. Holm, 1979)."""
    corrected, worst = {}, 0.0
    for index, key in enumerate(sorted(values, key=lambda each: values[each])):
        worst = max(worst, min(1.0, (len(values) - index) * values[key]))
        corrected[key] = worst
    return corrected

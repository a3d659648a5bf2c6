"""What counts as a number: JSON and Python count True among the integers, tocom does not."""

from __future__ import annotations

from typing import Any

__all__ = ["is_integer", "is_number"]


def is_integer(value: Any, least: int, most: int | None = None) -> bool:
    """Return whether a value is an integer from ``least`` to ``most``; None sets no upper end."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value and (most is None or value <= most)


def is_number(value: Any) -> bool:
    """Return whether a value is an integer or a float, NaN and infinity among them."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)

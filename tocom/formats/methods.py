"""The ways of removing tokens, by the names that files and options have for them."""

from __future__ import annotations

from tocom.errors import DegreeError

__all__ = ["METHODS", "check_method"]

METHODS = ("merge", "prune")


def check_method(method: str) -> str:
    """Return ``method``, or raise DegreeError when it is not a method."""
    if method not in METHODS:
        raise DegreeError(f"The 'method' parameter must be one of {', '.join(METHODS)}. Got {method!r} instead.")
    return method

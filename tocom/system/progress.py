"""How a long step reports what it does."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the steps done, and all steps."""


def silent(what: str, done: int, total: int, more: str = "") -> None:
    """Report nothing."""

"""How a long step reports what it does."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "Steps", "silent"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the steps done, and all steps."""


def silent(what: str, done: int, total: int, more: str = "") -> None:
    """Report nothing."""


class Steps:
    """Counts steps for a progress that may be None."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def next(self, what: str) -> None:
        """Report what begins now."""
        if self._progress is not None:
            self._progress(what, self._done, self._total)
        self._done += 1

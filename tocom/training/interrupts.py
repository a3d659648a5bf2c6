"""Ctrl-C and SIGTERM, held back until a step is whole and saved, then delivered as they came."""

from __future__ import annotations

import signal
import threading
from typing import Any

__all__ = ["Interrupts"]


class Interrupts:
    """Notes a signal; when the block ends, it acts as it would have. A second one acts at once.

    On another thread than the main one, and for signals that are ignored, nothing is noted.

    Attributes:
        noted: The number of the signal that came; None before.
    """

    def __init__(self) -> None:
        self.noted: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        if self.noted is not None:
            signal.raise_signal(self.noted)

    def _note(self, number: int, frame: object) -> None:
        if self.noted is None:
            self.noted = number
            return
        self._restore()
        signal.raise_signal(number)

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

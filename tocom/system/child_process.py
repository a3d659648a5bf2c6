"""Child processes that may crash, hang or eat memory: the limits that end them, and how their end is described."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["LOOK_EVERY_S", "Limits", "how_it_ended", "tail"]

LOOK_EVERY_S = 0.02
_MOST_LOG_CHARACTERS = 1200


class Limits:
    """What a child process may take, from now on.

    Args:
        timeout_s: Seconds; None sets no limit.
        memory_limit_bytes: Most memory that it may hold in RAM; None sets no limit.
    """

    def __init__(self, timeout_s: float | None, memory_limit_bytes: int | None) -> None:
        self._timeout_s, self._memory_limit_bytes = timeout_s, memory_limit_bytes
        self.restart()

    def restart(self) -> None:
        """Count the seconds from now on."""
        self._begin = time.monotonic()

    def exceeded(self, process: int) -> str | None:
        """Return which limit the process is over, such as "took longer than 5 s"; None within both."""
        if self._timeout_s is not None and time.monotonic() - self._begin > self._timeout_s:
            return f"took longer than {self._timeout_s:g} s"
        if self._memory_limit_bytes is not None and (held := _resident_bytes(process)) > self._memory_limit_bytes:
            return f"held {held} bytes of memory, allowed are {self._memory_limit_bytes}"
        return None


def _resident_bytes(process: int) -> int:
    # A limit of the address space would do for a CPU, but CUDA reserves many times what it uses.
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0


def how_it_ended(code: int) -> str:
    """Return what a return code means: "ended with status 3", "was killed by SIGSEGV"."""
    return f"ended with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def tail(lines: Iterable[str]) -> str:
    """Return the end of a log as one line."""
    text = " | ".join(line.strip() for line in lines if line.strip())
    return (text if len(text) <= _MOST_LOG_CHARACTERS else f"... {text[-_MOST_LOG_CHARACTERS:]}") or "nothing"

"""The ends of a process and its copies, as far as they concern a runtime.

A thread of ours that computes while the interpreter is torn down returns into what is gone, and the process aborts.
So what is open is closed before that. A process that is copied by ``fork`` holds engines whose threads and device are
those of the original: there every call is refused, where it would hang. What another thread is just opening is waited
for, and no more is opened from then on.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

from tocom.errors import RequestError

__all__ = ["keep_forever", "opening", "track"]

# For what another thread opens at the end of the process: a backend compiles for seconds, and then there is no hang.
_MOST_WAIT_S = 60.0


class _Openings:
    """Counts what is being opened now."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.count = 0
        self.ended = False


_open: weakref.WeakSet[Any] = weakref.WeakSet()
_openings = _Openings()


@contextlib.contextmanager
def opening() -> Iterator[None]:
    """Keep the interpreter from ending while engines are made or run that no runtime holds yet.

    Raises:
        RequestError: The process is ending.
    """
    mine = _openings
    with mine.changed:
        if mine.ended:
            raise RequestError("This process is ending: no bundle is opened any more.")
        mine.count += 1
    try:
        yield
    finally:
        with mine.changed:
            mine.count -= 1
            mine.changed.notify_all()


def track(opened: Any) -> None:
    """Call ``close`` of an object before the interpreter ends, and ``abandon`` in a process forked from this one."""
    _open.add(opened)


def keep_forever(thing: Any) -> None:
    """Never destroy an object: in a forked process its destructor would wait for threads that are not there."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _close_all() -> None:
    until = time.monotonic() + _MOST_WAIT_S
    with _openings.changed:
        _openings.ended = True
        while _openings.count and time.monotonic() < until:
            _openings.changed.wait(until - time.monotonic())
    for opened in list(_open):
        with contextlib.suppress(Exception):  # the process ends: nobody is there to hear of it
            opened.close()


def _abandon_all() -> None:
    global _openings
    _openings = _Openings()  # whoever opened something is not in this process
    for opened in list(_open):
        opened.abandon()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)

"""The ends of a process and its copies, as far as they concern a runtime.

A thread of ours that computes while the interpreter is torn down returns into what is no more, and the process aborts.
So what is open is closed before that. A process that is copied by ``fork`` holds engines whose threads and device are
those of the original: there every call is refused, where it would hang.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import weakref
from typing import Any, Protocol

__all__ = ["keep_for_ever", "track"]


class _Tracked(Protocol):
    def close(self) -> None: ...

    def abandon(self) -> None: ...


_open: weakref.WeakSet[Any] = weakref.WeakSet()


def track(opened: _Tracked) -> None:
    """Call ``close`` of an object before the interpreter ends, and ``abandon`` in a process forked from this one."""
    _open.add(opened)


def keep_for_ever(thing: Any) -> None:
    """Never destroy an object: in a forked process its destructor would wait for threads that are not there."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _close_all() -> None:
    for opened in list(_open):
        with contextlib.suppress(Exception):  # the process ends: nobody is there to be told
            opened.close()


def _abandon_all() -> None:
    for opened in list(_open):
        opened.abandon()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)

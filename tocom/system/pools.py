"""Work for other threads, also while Python ends."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

__all__ = ["submit"]

P = ParamSpec("P")
T = TypeVar("T")


def submit(pool: Executor, call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> Future[T]:
    """Hand a call to a pool; where it takes none any more, run it here, and return what came of it.

    Once the main thread has ended, Python's pools refuse new work, though other threads may go on to the end of theirs.
    """
    try:
        return pool.submit(call, *arguments, **options)
    except RuntimeError:
        done: Future[T] = Future()
        try:
            done.set_result(call(*arguments, **options))
        except BaseException as error:
            done.set_exception(error)
        return done

"""Work on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["on_a_thread"]

_T = TypeVar("_T")


def on_a_thread(function: Callable[[], _T], name: str) -> Future[_T]:
    """Call a function that may block for long, where it blocks neither signals nor the end of the process.

    A pool's threads would be waited for at the end of the process.

    Args:
        function: What to call.
        name: The thread's name.

    Returns:
        A future that cannot be cancelled, of what the function returns or raises.
    """
    future: Future[_T] = Future()
    future.set_running_or_notify_cancel()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # for who asks the future
            future.set_exception(error)

    threading.Thread(target=call, name=name, daemon=True).start()
    return future

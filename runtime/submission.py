"""Requests that wait: a queue in order of deadline, and the thread that answers them."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tocom.errors import RequestError
from tocom.runtime.result import Result

__all__ = ["Submission", "SubmissionQueue"]


@dataclass(order=True)
class Submission:
    """A request in the queue; the earliest deadline first, of equals the oldest."""

    deadline: float
    number: int
    images: Any = field(compare=False)
    budgeted: bool = field(compare=False)
    start: float = field(compare=False)
    token: int = field(compare=False)
    future: Future[Result] = field(compare=False)


class SubmissionQueue:
    """Answers submissions in order of deadline on one thread of its own.

    Args:
        answer: Answers one submission; what it raises goes into the future.
        limit: Most requests that may wait.
    """

    def __init__(self, answer: Callable[[Submission], Result], limit: int) -> None:
        self._answer = answer
        self._limit = limit
        self._heap: list[Submission] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._running: Submission | None = None
        self._thread: threading.Thread | None = None

    def put(self, images: Any, *, deadline: float | None, start: float, token: int) -> Future[Result]:
        """Queue a request; return the future of its answer.

        Raises:
            RequestError: The queue is full or closed.
        """
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                raise RequestError("Runtime.submit() needs an open runtime; this one is closed. Open the bundle again.")
            if len(self._heap) >= self._limit:
                self._forget_cancelled()
            if len(self._heap) >= self._limit:
                raise RequestError(
                    f"{self._limit} requests wait already (the 'queue_limit' parameter). "
                    "Submit fewer, raise the limit, or stream frames and let the oldest drop."
                )
            entry = Submission(
                float("inf") if deadline is None else deadline,
                next(self._numbers),
                images,
                deadline is not None,
                start,
                token,
                future,
            )
            heapq.heappush(self._heap, entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tocom-submit", daemon=True)
                self._thread.start()
            self._changed.notify()
            if self._closed:  # by a signal's handler, in the midst of these lines
                future.cancel()
        return future

    def _forget_cancelled(self) -> None:
        """Make room: after time-outs the queue may hold nothing that anybody waits for."""
        cancelled = {entry.number: entry for entry in self._heap if entry.future.cancelled()}
        self._heap = [entry for entry in self._heap if entry.number not in cancelled]
        heapq.heapify(self._heap)
        for entry in cancelled.values():
            entry.future.set_running_or_notify_cancel()  # for who waits by concurrent.futures.wait

    def close(self) -> None:
        """Cancel what waits; :meth:`join` waits for what runs."""
        with self._changed:
            self._closed = True
            waiting, self._heap = self._heap, []
            self._changed.notify()
        for entry in waiting:
            entry.future.cancel()

    def join(self) -> None:
        """Wait for the running request, after :meth:`close`. On the queue's own thread, do nothing."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and thread.is_alive():
            thread.join()

    def abandon(self, error: Exception) -> None:
        """In a forked process, where the thread is not: end every future with ``error``."""
        self._changed = threading.Condition()
        self._closed, self._thread = True, None
        waiting, self._heap = self._heap, []
        for entry in (*waiting, *([] if self._running is None else [self._running])):
            if not entry.future.done():
                entry.future.set_exception(error)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._heap and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                entry = heapq.heappop(self._heap)
            if not entry.future.set_running_or_notify_cancel():
                continue
            self._running = entry
            try:
                result = self._answer(entry)
            except BaseException as error:  # a future carries whatever was raised to its owner
                entry.future.set_exception(error)
            else:
                entry.future.set_result(result)
            self._running = None
            del entry  # or its images would stay until the next one

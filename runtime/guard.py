"""A limit on how long the runtime waits for a device that does not answer.

A call into a driver cannot be interrupted from outside, so the only way to give it up is not to be the thread that
makes it: with a limit, inferences run on a thread of their own, and the caller waits for its answer or the limit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from numpy.typing import NDArray

from tocom.errors import EngineError
from tocom.runtime.backends.base import Engine, Wrapper

__all__ = ["Guard", "GuardedEngine"]

log = logging.getLogger("tocom.runtime")

Outputs = dict[str, NDArray[Any]]


class _Call:
    def __init__(self, function: Callable[[], Any], what: str) -> None:
        self.function, self.what = function, what
        self.begin = time.monotonic()
        self.done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.value = self.function()
        except BaseException as error:  # raised again on the thread that waits
            self.error = error
        self.done.set()


class Guard:
    """Runs calls one after another on a thread of its own and gives up on one that takes too long.

    A call that was given up is not stopped, because nothing can stop it. Until it returns every further call is
    refused at once; when it returns, its answer is dropped and calls run again.

    Args:
        timeout_s: Seconds to wait for a call.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._lost: _Call | None = None
        self._thread = threading.Thread(target=self._work, name="tocom-device", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], Any], what: str) -> Any:
        """Return what ``function`` returns, or raise what it raises. One thread at a time may call.

        Raises:
            EngineError: It did not return in time, or one before it has still not returned.
        """
        lost = self._lost
        if lost is not None and not lost.done.is_set():
            raise EngineError(
                f"The device has been silent for {time.monotonic() - lost.begin:.0f} s, in {lost.what}. "
                "Runtime.reload() opens it again beside the silent one; when that fails, restart the process."
            )
        self._lost = None
        call = _Call(function, what)
        self._calls.put(call)
        try:
            answered = call.done.wait(self._timeout_s)
        except BaseException:  # Ctrl-C: whoever closes must know that it may be silent
            self._lost = call
            raise
        if not answered:
            self._lost = call
            raise EngineError(
                f"The device did not answer within {self._timeout_s:g} s, in {what}. Requests are refused until it "
                "does, or until Runtime.reload(). Where inferences may take this long, raise 'timeout_s'."
            )
        if call.error is not None:
            raise call.error
        return call.value

    def close(self, release: Callable[[], None]) -> None:
        """End the thread, then call ``release``; both only after a call that was given up returned, if it ever does."""
        lost = self._lost
        # One that its caller was called away from, by Ctrl-C or a signal's handler, has the rest of its time.
        if lost is not None and not lost.done.wait(max(lost.begin + self._timeout_s - time.monotonic(), 0.0)):
            # What the silent call still uses must not be freed under it.
            log.warning("the device is silent in %s: its memory is released when that returns", lost.what)
            self._calls.put(_Call(release, "release"))
            self._calls.put(None)
            return
        self._calls.put(None)
        self._thread.join()
        release()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()
            del call  # or its images and outputs would stay until the next one


class GuardedEngine(Wrapper):
    """An engine whose inferences run under a guard."""

    def __init__(self, engine: Engine, guard: Guard, degree: int) -> None:
        super().__init__(engine)
        self._guard = guard
        self._what = f"degree {degree}"

    def run(self, images: Any) -> Outputs:
        """Return the outputs by name, or raise EngineError after the limit."""
        outputs: Outputs = self._guard.call(lambda: self._engine.run(images), self._what)
        return outputs

"""Camera loops: of each source the newest frame waits, older ones are dropped and counted; the most urgent is next."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tocom.errors import DataError, RequestError
from tocom.runtime.lifecycle import track
from tocom.runtime.policy.load import Load
from tocom.runtime.policy.together import Plan
from tocom.runtime.result import Result
from tocom.system.threads import on_a_thread

__all__ = ["Frame", "Streams", "Waiting"]

log = logging.getLogger("tocom.runtime")

_AT_THE_END_S = 2.0
# Past the moment until which others are waited for, so that a wake-up is not too early.
_TICK_S = 1e-4


@dataclass(frozen=True)
class Frame:
    """One answered frame.

    Attributes:
        index: Its index in the source, from 0.
        result: The answer. Its latency counts from the frame's arrival.
        dropped: Frames of its source dropped so far because a newer one came.
        source: The source's name.
    """

    index: int
    result: Result
    dropped: int
    source: str = ""


@dataclass(slots=True, eq=False)
class Waiting:
    """A frame that waits.

    Attributes:
        source: Its source's name.
        index: Its index in the source.
        images: What the source gave, as :meth:`Runtime.infer` takes it.
        arrived: When it came.
        budget_ms: Milliseconds from then to its answer; None for no limit.
        due: When that is; infinity for no limit.
        urgent: When the first frame that waited since the source's last answer is due: newer ones keep its turn, or a
            fast source would never let a slow one have its own.
        asker: Its source's name in the load.
        token: What the load knows it by.
    """

    source: str
    index: int
    images: Any
    arrived: float
    budget_ms: float | None
    due: float
    urgent: float
    asker: Hashable
    token: int


class _Source:
    def __init__(self, name: str, fps: float | None, budget_ms: float | None) -> None:
        self.name, self.fps, self.budget_ms = name, fps, budget_ms
        self.dropped = 0
        self.slot: Waiting | None = None
        self.ended = False
        self.error: BaseException | None = None


class Streams:
    """Answers of several sources, as they come: iterate over it, with ``for`` or ``async for``.

    Each source is read on a thread of its own. One that raises or ends leaves the others going; what was raised is
    raised when all have ended. Closing it, or leaving a loop over it by an error, stops the reading.

    Args:
        sources: The frames of each source; reading one may block (a camera) or not (a list).
        answer: Answers one frame, or several at once.
        together: Of frames that wait, the most urgent first, how many to answer at once, and until when to wait.
        prepare: Makes what a source gives what ``answer`` takes.
        rates: Frames per second at which to read each source; None reads as fast as it gives.
        budgets: Milliseconds that each source's answers may take; None for no limit.
        load: Where waiting frames are noted.
        on_drop: Called with the name of a source whose frame was dropped.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        sources: Mapping[str, Iterable[Any]],
        answer: Callable[[list[Waiting]], list[Result]],
        *,
        together: Callable[[list[Waiting]], Plan],
        prepare: Callable[[Any], Any],
        rates: Mapping[str, float | None],
        budgets: Mapping[str, float | None],
        load: Load,
        on_drop: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answer, self._prepare, self._on_drop, self._clock = answer, prepare, on_drop, clock
        self._together = together
        self._load = load
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._sources = {name: _Source(name, rates[name], budgets[name]) for name in sources}
        self._readers = [
            threading.Thread(target=self._read, args=(source, sources[source.name]), name="tocom-stream", daemon=True)
            for source in self._sources.values()
        ]
        self._started = False

    def __iter__(self) -> Iterator[Frame]:
        with self:
            while frames := self._next():
                yield from frames

    async def __aiter__(self) -> AsyncIterator[Frame]:
        with self:
            # The event loop's own threads are few, and one source that stalls holds one.
            while frames := await asyncio.wrap_future(on_a_thread(self._next, "tocom-stream-answers")):
                for frame in frames:
                    yield frame

    def __enter__(self) -> Streams:
        if not self._started:
            self._started = True
            track(self)
            for source in self._sources.values():
                if source.budget_ms is not None:
                    # A camera whose rate is not known gives a frame per budget, until it is seen to do otherwise.
                    budget_s = source.budget_ms / 1e3
                    period_s = budget_s if source.fps is None else 1.0 / source.fps
                    self._load.expect((id(self), source.name), period_s, budget_s)
            for reader in self._readers:
                reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Read no more: whoever waits for a frame gets none. A source that blocks ends with its next frame."""
        self._stopped.set()
        for name in self._sources:
            self._load.forget((id(self), name))
        with self._changed:
            for source in self._sources.values():
                if source.slot is not None:
                    self._load.start(source.slot.token)
                    source.slot = None
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, and give sources that block a moment to end: at the end of the process."""
        self.stop()
        until = time.monotonic() + _AT_THE_END_S
        for reader in self._readers:
            if reader.is_alive():
                reader.join(max(until - time.monotonic(), 0.0))

    def abandon(self) -> None:
        """In a forked process, where the readers are not: give no more frames."""
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._stopped.set()

    def _next(self) -> list[Frame]:
        while True:
            waiting = self._take()
            if not waiting:
                return []
            # Asked without the readers' lock: another thread may infer meanwhile.
            plan = self._together(waiting)
            if plan.wait_until is None:
                break
            self._put_back(waiting)
            with self._changed:
                if all(source.slot is None or source.slot in waiting for source in self._sources.values()):
                    self._changed.wait(max(plan.wait_until - self._clock(), 0.0) + _TICK_S)
        self._put_back(waiting[plan.size :])
        chosen = waiting[: plan.size]
        try:
            results = self._answer(chosen)
        except RequestError:
            if self._stopped.is_set():  # the runtime was closed meanwhile
                return []
            raise
        return [
            Frame(each.index, result, self._sources[each.source].dropped, each.source)
            for each, result in zip(chosen, results, strict=True)
        ]

    def _put_back(self, frames: list[Waiting]) -> None:
        """Let frames wait on, unless a newer one of their source came meanwhile."""
        for frame in frames:
            source = self._sources[frame.source]
            with self._changed:
                newer = source.slot
                if newer is None and not self._stopped.is_set():
                    source.slot = frame
                    continue
                self._load.start(frame.token)
                if newer is not None:
                    newer.urgent = frame.urgent
            if newer is not None:
                self._drop(source)

    def _take(self) -> list[Waiting]:
        """Return all waiting frames, the most urgent first, waiting for one; empty after the last.

        Raises what a source raised.
        """
        with self._changed:
            while True:
                if self._stopped.is_set():
                    return []
                present = [source.slot for source in self._sources.values() if source.slot is not None]
                if present:
                    for slot in present:
                        self._sources[slot.source].slot = None
                    return sorted(present, key=lambda each: each.urgent)
                if all(source.ended for source in self._sources.values()):
                    for source in self._sources.values():
                        if source.error is not None:
                            raise source.error
                    return []
                self._changed.wait()

    def _read(self, source: _Source, frames: Iterable[Any]) -> None:
        begin = self._clock()
        try:
            for index, given in enumerate(frames):
                if source.fps is not None:
                    self._stopped.wait(min(max(begin + index / source.fps - self._clock(), 0.0), threading.TIMEOUT_MAX))
                if self._stopped.is_set():
                    break
                arrived = self._clock()
                try:
                    images = self._prepare(given)
                except DataError as error:  # a camera's broken frame; the next one may be whole
                    log.warning("a frame of %s is left out: %s", source.name or "the stream", error)
                    self._drop(source)
                    continue
                self._put(source, index, images, arrived)
        except BaseException as error:  # handed to the consumer, on whose behalf the source is read
            source.error = error
            if len(self._sources) > 1:
                log.warning("the source %s ended with an error, others go on: %s", source.name, error)
        finally:
            if self._stopped.is_set():
                # A generator's own finally, such as a camera's release, runs here and not when it is collected.
                with contextlib.suppress(Exception):
                    getattr(frames, "close", lambda: None)()
        with self._changed:
            source.ended = True
            self._changed.notify_all()

    def _put(self, source: _Source, index: int, images: Any, arrived: float) -> None:
        due = float("inf") if source.budget_ms is None else arrived + source.budget_ms / 1e3
        asker = id(self), source.name
        token = self._load.arrive(asker, arrived, due)
        with self._changed:
            old, urgent = source.slot, arrived if source.budget_ms is None else due
            if old is not None:
                self._load.start(old.token)
                urgent = old.urgent
            source.slot = Waiting(source.name, index, images, arrived, source.budget_ms, due, urgent, asker, token)
            self._changed.notify_all()
        if old is not None:
            self._drop(source)

    def _drop(self, source: _Source) -> None:
        source.dropped += 1
        self._on_drop(source.name)

"""Camera loops: of each source the newest frame waits, older ones are dropped and counted; the most urgent is next."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tocom.errors import DataError
from tocom.runtime.lifecycle import track
from tocom.runtime.policy.load import Load
from tocom.runtime.result import Result

__all__ = ["Frame", "Streams", "Waiting"]

log = logging.getLogger("tocom.runtime")

_AT_THE_END_S = 2.0


@dataclass(frozen=True)
class Frame:
    """One answered frame.

    Attributes:
        index: Its place in the source, from 0.
        result: The answer. Its latency counts from the frame's arrival.
        dropped: Frames of its source dropped so far because a newer one came.
        source: The source's name.
    """

    index: int
    result: Result
    dropped: int
    source: str = ""


@dataclass(slots=True)
class Waiting:
    """A frame that waits.

    Attributes:
        source: Its source's name.
        index: Its place in the source.
        images: What the source gave, as :meth:`Runtime.infer` takes it.
        arrived: When it came.
        budget_ms: Milliseconds from then to its answer; None for no limit.
        urgent: When the first frame that waited since the source's last answer is due: newer ones keep its turn, or a
            fast source would never let a slow one have its own.
        asker: Its source's name in the load.
        token: Its place in the load.
    """

    source: str
    index: int
    images: Any
    arrived: float
    budget_ms: float | None
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
        answer: Answers a frame.
        prepare: Makes what a source gives what ``answer`` takes.
        rates: Frames per second at which to read each source; None reads as fast as it gives.
        budgets: Milliseconds that each source's answers may take; None for no limit.
        load: Where waiting frames are noted.
        on_drop: Told a source whose frame was dropped.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        sources: Mapping[str, Iterable[Any]],
        answer: Callable[[Waiting], Result],
        *,
        prepare: Callable[[Any], Any],
        rates: Mapping[str, float | None],
        budgets: Mapping[str, float | None],
        load: Load,
        on_drop: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answer, self._prepare, self._on_drop, self._clock = answer, prepare, on_drop, clock
        self._load = load
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._sources = {name: _Source(name, rates[name], budgets[name]) for name in sources}
        self._readers = [
            threading.Thread(target=self._read, args=(source, sources[source.name]), name="tocom-stream", daemon=True)
            for source in self._sources.values()
        ]
        self._started = False
        for source in self._sources.values():
            if source.fps is not None:
                load.expect((id(self), source.name), 1.0 / source.fps)

    def __iter__(self) -> Iterator[Frame]:
        with self:
            while (frame := self._next()) is not None:
                yield frame

    async def __aiter__(self) -> AsyncIterator[Frame]:
        with self:
            while (frame := await asyncio.to_thread(self._next)) is not None:
                yield frame

    def __enter__(self) -> Streams:
        if not self._started:
            self._started = True
            track(self)
            for reader in self._readers:
                reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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

    def _next(self) -> Frame | None:
        waiting = self._take()
        if waiting is None:
            return None
        result = self._answer(waiting)
        return Frame(waiting.index, result, self._sources[waiting.source].dropped, waiting.source)

    def _take(self) -> Waiting | None:
        """Return the most urgent frame, waiting for one; None after the last. Raises what a source raised."""
        with self._changed:
            while True:
                if self._stopped.is_set():
                    return None
                present = [source for source in self._sources.values() if source.slot is not None]
                if present:
                    source = min(present, key=lambda each: each.slot.urgent if each.slot else 0.0)
                    slot, source.slot = source.slot, None
                    return slot
                if all(source.ended for source in self._sources.values()):
                    for source in self._sources.values():
                        if source.error is not None:
                            raise source.error
                    return None
                self._changed.wait()

    def _read(self, source: _Source, frames: Iterable[Any]) -> None:
        begin = self._clock()
        try:
            for index, given in enumerate(frames):
                if source.fps is not None:
                    self._stopped.wait(max(begin + index / source.fps - self._clock(), 0.0))
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
            source.slot = Waiting(source.name, index, images, arrived, source.budget_ms, urgent, asker, token)
            self._changed.notify_all()
        if old is not None:
            self._drop(source)

    def _drop(self, source: _Source) -> None:
        source.dropped += 1
        self._on_drop(source.name)

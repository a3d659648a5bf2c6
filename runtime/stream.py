"""Camera loops: the newest frame wins, older ones are dropped and counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tocom.runtime.result import Result

__all__ = ["Frame", "stream_frames"]


@dataclass(frozen=True)
class Frame:
    """One answered frame.

    Attributes:
        index: Its place in the source, from 0.
        result: The answer. Its latency counts from the frame's arrival.
        dropped: Frames dropped so far because a newer one came.
    """

    index: int
    result: Result
    dropped: int


class _Mailbox:
    """Holds the newest frame; putting over an untaken one drops that."""

    def __init__(self) -> None:
        self.dropped = 0
        self._changed = threading.Condition()
        self._slot: tuple[int, Any, float] | None = None
        self._error: BaseException | None = None
        self._ended = False
        self.stopped = threading.Event()

    def put(self, index: int, images: Any, arrived: float) -> None:
        with self._changed:
            self.dropped += self._slot is not None
            self._slot = (index, images, arrived)
            self._changed.notify()

    def end(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def take(self) -> tuple[int, Any, float] | None:
        """Return the newest frame, waiting for it; None after the last. Raises what the source raised."""
        with self._changed:
            while self._slot is None and not self._ended:
                self._changed.wait()
            slot, self._slot = self._slot, None
            if slot is None and self._error is not None:
                raise self._error
            return slot


def stream_frames(
    frames: Iterable[Any],
    answer: Callable[[Any, float], Result],
    *,
    fps: float | None,
    on_drop: Callable[[int], None],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Frame]:
    """Yield an answer per taken frame.

    Args:
        frames: The source, read on a thread of its own; it may block (a camera) or not (a list).
        answer: Answers images that arrived at a time of ``clock``.
        fps: Frames per second at which to read a source that does not block; None reads as fast as it gives.
        on_drop: Told how many frames were dropped since the last answer.
        clock: Seconds, monotonic.
    """
    box = _Mailbox()

    def read() -> None:
        begin = clock()
        try:
            for index, images in enumerate(frames):
                if fps is not None and box.stopped.wait(max(begin + index / fps - clock(), 0.0)):
                    return
                if box.stopped.is_set():
                    return
                box.put(index, images, clock())
        except BaseException as error:  # handed to the consumer, on whose behalf the source is read
            box.end(error)
        else:
            box.end()

    reader = threading.Thread(target=read, name="tocom-stream", daemon=True)
    reader.start()
    counted = 0
    try:
        while (slot := box.take()) is not None:
            index, images, arrived = slot
            result = answer(images, arrived)
            dropped = box.dropped
            on_drop(dropped - counted)
            counted = dropped
            yield Frame(index, result, dropped)
    finally:
        box.stopped.set()

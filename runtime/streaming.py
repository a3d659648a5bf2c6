"""``Runtime.stream`` and ``Runtime.streams``: the runtime's part of camera loops."""

from __future__ import annotations

import itertools
import logging
import math
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import RequestError
from tocom.runtime.checks import check_budget, check_rate
from tocom.runtime.engine_set import EngineSet
from tocom.runtime.policy.controller import Controller
from tocom.runtime.policy.load import Load, Together
from tocom.runtime.policy.together import Asking, Plan, plan_together
from tocom.runtime.preprocessing import prepare
from tocom.runtime.result import Result
from tocom.runtime.stats import Counters
from tocom.runtime.stream import Frame, Streams, Waiting

__all__ = ["Streaming"]

log = logging.getLogger("tocom.runtime")


class Streaming(ABC):
    """What answers frames: the half of a runtime that knows of sources."""

    _active: EngineSet
    _clock: Callable[[], float]
    _lock: Any

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counters = Counters()
        self._load = Load()
        self._streams: weakref.WeakSet[Streams] = weakref.WeakSet()

    @abstractmethod
    def _answer(
        self,
        images: Any,
        start: float,
        budget_ms: float | None,
        degree: int | None,
        arrival: tuple[Hashable, int] | None = None,
    ) -> Result: ...

    def preprocess(self, images: Any, *, order: str = "rgb") -> NDArray[Any]:
        """Return images as :meth:`infer` takes them: resized, cropped and normalised as the model was trained with.

        Args:
            images: An encoded image (bytes), a path, a PIL image, an array of uint8 [height, width, 3] or
                [height, width], or a list of such.
            order: Order of the channels of arrays: ``rgb``, or ``bgr``, which is OpenCV's.

        Returns:
            [batch, channels, height, width], float32; or uint8, where the bundle's graph normalises. Files and
            PIL images equal timm's evaluation transform bit for bit; arrays are resized where the model looks alone,
            which is faster and equal within one grey level.

        Raises:
            DataError: An image cannot be decoded, or its pixels' range is not known; a file is named.
            RequestError: An array is of another type or shape, or ``order`` is neither.
        """
        return prepare(images, self._active.bundle.manifest["input"], order)

    def stream(
        self,
        frames: Iterable[Any],
        *,
        fps: float | None = None,
        budget_ms: float | None = None,
        degree: int | None = None,
        order: str = "rgb",
    ) -> Iterator[Frame]:
        """Answer frames of a camera or a file; while one is answered, only the newest waits, older ones are dropped.

        Args:
            frames: What :meth:`infer` or :meth:`preprocess` takes, one after another; read on a thread of its own.
            fps: Rate at which to read a source that does not block, such as a list; also sets the budget.
            budget_ms: Milliseconds from a frame's arrival to its answer; None takes 1000/fps, or no limit.
            degree: Run this degree whatever the budget.
            order: Order of the channels of arrays, as for :meth:`preprocess`.

        Yields:
            The answer, the frame's index, and how many were dropped so far.

        Raises:
            RequestError: ``fps`` or ``budget_ms`` is out of its range.
        """
        return iter(self.streams({"": frames}, fps=fps, budget_ms=budget_ms, degree=degree, order=order))

    def streams(
        self,
        sources: Mapping[str, Iterable[Any]] | Sequence[tuple[str, Iterable[Any]]],
        *,
        fps: float | Mapping[str, float] | None = None,
        budget_ms: float | Mapping[str, float] | None = None,
        degree: int | None = None,
        order: str = "rgb",
    ) -> Streams:
        """Answer frames of several cameras, for ``for`` or ``async for``: of each source the newest frame waits.

        The most urgent frame is answered first, at a degree that lets all waiting and expected ones be in time. Where
        a profile of a larger batch beside the bundle (``tocom calibrate --batch N``) says that it pays, frames that
        wait are answered in one inference; a hook is then called once, with the outputs of all. A source that ends or
        raises leaves the others going; what was raised is raised when all have ended.

        Args:
            sources: The frames of each source by its name; as for :meth:`stream`.
            fps: As for :meth:`stream`, for all or by name.
            budget_ms: As for :meth:`stream`, for all or by name.
            degree: Run this degree whatever the budget.
            order: Order of the channels of arrays, as for :meth:`preprocess`.

        Returns:
            What gives the answers; :attr:`Frame.source` names whose each is.

        Raises:
            RequestError: No source, two of one name, one without a name or that gives no frames; ``fps`` or
                ``budget_ms`` is out of its range, or names a source that is not there.
        """
        named = _named(sources)
        for parameter, values in (("fps", fps), ("budget_ms", budget_ms)):
            unknown = set(values) - set(named) if isinstance(values, Mapping) else None
            if unknown:
                raise RequestError(
                    f"The {parameter!r} parameter must name sources: {list(named)!r}. Got {sorted(unknown, key=str)!r}."
                )
        rates = {name: check_rate(_of(fps, name)) for name in named}
        budgets = {name: _budget_of(_of(budget_ms, name), rates[name]) for name in named}
        _warn_of_too_many(self._active.controller, rates)

        def answer(frames: list[Waiting]) -> list[Result]:
            if len(frames) > 1:
                return self._answer_together(frames)
            (frame,) = frames
            return [self._answer(frame.images, frame.arrived, frame.budget_ms, degree, (frame.asker, frame.token))]

        def together(frames: list[Waiting]) -> Plan:
            return Plan(1, None) if degree is not None else self._plan_together(frames)

        def prepared(given: Any) -> Any:
            # What fits no engine ends its own source, and not the loop over all of them.
            if isinstance(given, np.ndarray):
                return self._active.check(given) if given.ndim == 4 else self.preprocess(given, order=order)
            on_device = hasattr(given, "__dlpack__") or hasattr(given, "__cuda_array_interface__")
            return given if on_device else self.preprocess(given, order=order)

        streams = Streams(
            named,
            answer,
            together=together,
            prepare=prepared,
            rates=rates,
            budgets=budgets,
            load=self._load,
            on_drop=self._counters.drop,
            clock=self._clock,
        )
        self._streams.add(streams)
        return streams

    def _plan_together(self, frames: Sequence[Waiting]) -> Plan:
        """Return how many of these frames, the most urgent first, are best answered at once."""
        controller = self._active.controller
        if controller is None or not controller.batches:
            return Plan(1, None)
        alike = list(itertools.takewhile(lambda frame: _is_alike(frame.images, frames[0].images), frames))
        asking = [Asking(frame.asker, frame.token, frame.due) for frame in alike]
        with self._lock:
            least = self._active.bundle.batch[0]
            return plan_together(asking, self._clock(), self._load, controller, least=least)

    def _answer_together(self, frames: Sequence[Waiting]) -> list[Result]:
        """Answer frames of several sources in one inference; each keeps its own latency and budget."""
        for frame in frames:
            self._load.start(frame.token)
        begin, due = min(frame.arrived for frame in frames), min(frame.due for frame in frames)
        images = np.concatenate([frame.images for frame in frames])
        asker = Together(frame.asker for frame in frames)
        budget_ms = None if due == math.inf else (due - begin) * 1e3
        whole = self._answer(images, begin, budget_ms, None, (asker, frames[0].token))
        results = []
        for index, frame in enumerate(frames):
            later_ms = (frame.arrived - begin) * 1e3
            latency_ms = whole.latency_ms - later_ms
            result = replace(
                whole,
                outputs={name: values[index : index + 1] for name, values in whole.outputs.items()},
                latency_ms=latency_ms,
                queue_ms=max(whole.queue_ms - later_ms, 0.0),
                budget_ms=frame.budget_ms,
                met_budget=frame.budget_ms is None or latency_ms <= frame.budget_ms,
            )
            results.append(result)
        with self._lock:
            self._counters.together += len(frames)
            for each in results[1:]:  # one request was counted
                self._counters.record(
                    each.degree, each.latency_ms, each.queue_ms, each.budget_ms, each.met_budget, each.feasible, False
                )
        return results


def _named(sources: Any) -> dict[str, Iterable[Any]]:
    """Return the sources by name.

    Raises:
        RequestError: None, two of one name, no pairs of name and frames, or what gives no frames.
    """
    pairs = [*sources.items()] if isinstance(sources, Mapping) else [*sources]
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise RequestError(
            "The 'sources' parameter must give each source a name: {'left': frames, 'right': frames}. "
            f"Got a {type(sources).__name__} of {', '.join(type(pair).__name__ for pair in pairs)} instead."
        )
    named = dict(pairs)
    if not named or len(named) < len(pairs):
        raise RequestError(
            f"The 'sources' parameter must hold sources of different names. Got {[name for name, _ in pairs]!r}."
        )
    for name, source in named.items():
        if not isinstance(source, Iterable) or isinstance(source, (str, bytes, bytearray, Path)):
            raise RequestError(
                f"The source {name!r} must be frames, one after another: a list or a generator that reads a camera or "
                f"a file (examples/camera_loop.py). Got {source!r} instead."
            )
    return named


def _is_alike(images: Any, other: Any) -> bool:
    """Return whether two frames of one image each can stand in one batch."""
    return (
        isinstance(images, np.ndarray)
        and isinstance(other, np.ndarray)
        and len(images) == 1
        and images.shape == other.shape
        and images.dtype == other.dtype
    )


def _warn_of_too_many(controller: Controller | None, rates: Mapping[str, float | None]) -> None:
    """Say when not even the fastest degree can answer every frame, and at which rate it could."""
    asked = sum(rate or 0.0 for rate in rates.values())
    if controller is None or not asked:
        return
    fastest_ms = controller.fastest_ms()
    if asked * fastest_ms > 1e3:
        log.warning(
            "%.1f frames a second are asked for (sources: %d), the fastest degree answers %.1f: frames will be "
            "dropped. At most %.1f frames a second from each fit; export higher degrees, or run fewer sources.",
            asked,
            len(rates),
            1e3 / fastest_ms,
            1e3 / fastest_ms / len(rates),
        )


def _of(value: float | Mapping[str, float] | None, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else value


def _budget_of(budget_ms: Any, rate: float | None) -> float | None:
    if budget_ms is not None:
        return check_budget(budget_ms)
    return None if rate is None else 1e3 / rate

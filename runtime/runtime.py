"""``Runtime``: the engines of a bundle, the latency model and the policy behind one call."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from tocom.errors import DegreeError, RequestError, TocomError
from tocom.formats.bundle import Bundle
from tocom.formats.profile import Profile
from tocom.formats.signatures import load_public_keys
from tocom.runtime.backends.base import Backend
from tocom.runtime.checks import (
    check_budget,
    check_deadline,
    check_open_options,
    check_outputs,
    check_timeout,
)
from tocom.runtime.engine_set import EngineSet, OpenOptions
from tocom.runtime.lifecycle import keep_for_ever, track
from tocom.runtime.policy.choice import Decision
from tocom.runtime.policy.controller import Controller, ControllerConfig
from tocom.runtime.preprocessing import prepare
from tocom.runtime.result import Result
from tocom.runtime.streaming import Streaming
from tocom.runtime.submission import Submission, SubmissionQueue

__all__ = ["Runtime", "State"]

log = logging.getLogger("tocom.runtime")

Hook = Callable[[Result], None]


class State(enum.Enum):
    """Life of a runtime: loaded, then warm, then closed; forked in a process that was forked from its own."""

    LOADED = "loaded"
    WARM = "warm"
    CLOSED = "closed"
    FORKED = "forked"


class Runtime(Streaming):
    """Engines of one bundle, resident; answers each request with the most accurate degree within its budget.

    Thread-safe: any thread may call any method at any time. One inference runs at a time; the time that a call waits
    for its turn counts against its budget. Images are read, never written; the caller must leave those of a
    submission alone until its future is done. Make one with :meth:`open`.
    """

    def __init__(
        self,
        engine_set: EngineSet,
        options: OpenOptions,
        *,
        queue_limit: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._active = engine_set
        self._options = options
        super().__init__(clock)
        self._state = State.LOADED
        # A signal's handler runs on a thread that may hold them, and calls close() or stats().
        self._lock = threading.RLock()
        self._reload_lock = threading.RLock()
        self._queue = SubmissionQueue(self._answer_submission, queue_limit)
        self._hooks: tuple[Hook, ...] = ()
        track(self)

    @classmethod
    def open(
        cls,
        bundle_path: Path | str,
        backend: str = "auto",
        *,
        degrees: Sequence[int] | None = None,
        profile: Profile | Path | str | None = None,
        threads: int | None = None,
        on_infeasible: str = "fastest",
        quantile: float = 0.95,
        hysteresis: float = 0.03,
        memory_limit_bytes: int | None = None,
        check_finite: bool = False,
        queue_limit: int = 64,
        timeout_s: float | str | None = "auto",
        check_answers: bool = True,
        warm: bool = True,
        trusted_keys: Sequence[Path | str] | None = None,
    ) -> Runtime:
        """Open a bundle: check every file's hash, load the degrees, find or measure a profile, warm up.

        Args:
            bundle_path: The bundle's folder.
            backend: A backend's name, or ``auto``.
            degrees: Degrees to keep resident; None takes all.
            profile: A profile, or the path of one; None takes the one beside the bundle that was measured on this
                device, and without one measures a short one.
            threads: CPU threads of one inference; None takes the usable physical cores.
            on_infeasible: ``fastest`` or ``raise``, when no degree meets a budget.
            quantile: Quantile of the predicted latency that must meet the budget.
            hysteresis: Share by which a slower degree must beat the budget right after a switch.
            memory_limit_bytes: Most memory that the engines may take; the set of degrees that is worth most to the
                policy within it is kept. None sets no limit.
            check_finite: Refuse images with NaN or infinity.
            queue_limit: Most submissions that may wait.
            timeout_s: Seconds until an inference is given up as lost, with an EngineError; None waits for ever.
                ``auto`` is 60 on a GPU and None on the CPU, where the caller's own thread computes. A number moves
                inferences to a thread of the runtime's own, which costs about 30 µs each.
            check_answers: Serve no degree whose answers to the bundle's reference images are wrong: each is compared
                at the smallest, the optimal and the largest batch, plainly and captured, on a reload too. False is for
                those who know why an engine differs.
            warm: Call :meth:`warm_up` now.
            trusted_keys: Files of public keys; a bundle, or an engine, that none of them signed is refused, on a
                reload too. None asks for no signature.

        Raises:
            BundleError: The bundle is missing, corrupt, was changed, or is not signed by a trusted key.
            DegreeError: ``degrees`` names one that the bundle lacks.
            EngineError: No backend, no degree fits, one cannot be loaded, or none answers rightly.
            CalibrationError: ``profile`` is not valid, or was measured elsewhere.
            RequestError: Another argument is out of its range.
        """
        check_open_options(threads=threads, memory_limit_bytes=memory_limit_bytes, queue_limit=queue_limit)
        check_timeout(timeout_s)
        options = OpenOptions(
            backend=backend,
            degrees=None if degrees is None else tuple(degrees),
            threads=threads,
            memory_limit_bytes=memory_limit_bytes,
            check_finite=check_finite,
            controller=ControllerConfig(quantile=quantile, hysteresis=hysteresis, on_infeasible=on_infeasible),
            timeout_s=timeout_s,
            check_answers=check_answers,
            trusted_keys=None if trusted_keys is None else load_public_keys(trusted_keys),
        )
        runtime = cls(EngineSet.load(bundle_path, options, profile), options, queue_limit=queue_limit)
        if warm:
            try:
                runtime.warm_up()
            except BaseException:
                runtime.close()
                raise
        return runtime

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Runtime({str(self.bundle.path)!r}, backend={self.backend.name!r}, degrees={list(self.degrees)}, "
            f"state={self._state.value!r})"
        )

    @property
    def state(self) -> State:
        """Where in its life the runtime is."""
        return self._state

    @property
    def bundle(self) -> Bundle:
        """The bundle that answers now."""
        return self._active.bundle

    @property
    def backend(self) -> Backend:
        """The backend that answers now; its ``reason`` says why it was chosen."""
        return self._active.backend

    @property
    def profile(self) -> Profile | None:
        """The profile in use; None before :meth:`warm_up` when none was found."""
        return self._active.profile

    @property
    def degrees(self) -> tuple[int, ...]:
        """The resident degrees, ascending."""
        return tuple(self._active.engines)

    @property
    def labels(self) -> list[str] | None:
        """The names of the model's classes, or None."""
        return self.bundle.labels

    def preprocess(self, images: Any, *, order: str = "rgb") -> NDArray[np.float32]:
        """Return images as :meth:`infer` takes them: resized, cropped and normalised as the model was trained with.

        Args:
            images: An encoded image (bytes), a path, a PIL image, an array of uint8 [height, width, 3] or
                [height, width], or a list of such.
            order: Of the channels of arrays: ``rgb``, or ``bgr``, which is OpenCV's.

        Returns:
            [batch, channels, height, width], float32. Files and PIL images equal timm's evaluation transform bit for
            bit; arrays are resized where the model looks alone, which is faster and equal within one grey level.

        Raises:
            DataError: An image cannot be decoded, or its pixels' range is not known; a file is named.
            RequestError: An array is of another type or shape, or ``order`` is neither.
        """
        return prepare(images, self.bundle.manifest["input"], order)

    def warm_up(self, *, expect_profile: bool = True) -> None:
        """Run every degree on the reference images, and drop those that answer wrongly, with a warning each.

        First-call costs are paid by then. Without a profile, measure a short one.

        Args:
            expect_profile: Warn when no profile was found; calibration, which makes one, does not expect any.

        Raises:
            BundleError: The bundle's reference answers are missing or damaged.
            EngineError: A degree does not run, or none answers rightly.
            RequestError: The runtime is closed.
        """
        with self._lock:
            if self._state is State.LOADED:
                self._active.warm_up(expect_profile=expect_profile)
                if self._state is State.LOADED:  # not closed by a signal's handler meanwhile
                    self._state = State.WARM
            if self._state is not State.WARM:
                raise self._unusable("warm_up")

    def infer(
        self,
        images: Any,
        budget_ms: float | None = None,
        *,
        deadline: float | None = None,
        degree: int | None = None,
    ) -> Result:
        """Answer one request.

        Args:
            images: [batch, channels, height, width], float32, as the manifest's input entry says; or a list of what
                :meth:`preprocess` takes, which is done within the budget. A batch that is smaller than the bundle's
                smallest is filled up, and the filling's answers are dropped.
            budget_ms: Milliseconds from this call to the answer; None sets no limit.
            deadline: A point in time of ``time.monotonic()``, seconds, in place of a budget.
            degree: Run this degree whatever the budget; for calibration and comparisons.

        Raises:
            RequestError: An argument is out of its range, or the runtime is not warm or is closed.
            DegreeError: ``degree`` is not resident.
            BudgetError: No degree meets the budget and the runtime was opened with ``on_infeasible="raise"``.
            EngineError: The device failed, fell silent, or gave values that are not finite.
        """
        start = self._clock()
        if deadline is not None:
            budget_ms = (check_deadline(deadline, budget_ms) - start) * 1e3
        elif budget_ms is not None:
            budget_ms = check_budget(budget_ms)
        if isinstance(images, (list, tuple)):
            images = self.preprocess(images)
        return self._answer(images, start, budget_ms, degree)

    def submit(
        self, images: NDArray[np.float32], budget_ms: float | None = None, *, deadline: float | None = None
    ) -> Future[Result]:
        """Queue a request and return the future of its answer. The earliest deadline is answered first.

        Args:
            images: As for :meth:`infer`; not to be changed until the future is done.
            budget_ms: Milliseconds from this call to the answer, waiting included; None sets no limit.
            deadline: A point in time of ``time.monotonic()``, seconds, in place of a budget.

        Raises:
            RequestError: An argument is out of its range, the queue is full, or the runtime is not warm or is closed.
        """
        start = self._clock()
        if self._state is not State.WARM:
            raise self._unusable("submit")
        if deadline is not None:
            deadline = check_deadline(deadline, budget_ms)
        elif budget_ms is not None:
            deadline = start + check_budget(budget_ms) / 1e3
        images = self._active.check(images)
        token = self._load.arrive(None, start, math.inf if deadline is None else deadline)
        try:
            future = self._queue.put(images, deadline=deadline, start=start, token=token)
        except RequestError:
            self._load.start(token)
            raise
        # Cancelled before its turn, it waits no more.
        future.add_done_callback(lambda _: self._load.start(token))
        return future

    async def infer_async(
        self, images: NDArray[np.float32], budget_ms: float | None = None, *, deadline: float | None = None
    ) -> Result:
        """Await an answer without blocking the event loop; arguments and errors as for :meth:`submit`."""
        return await asyncio.wrap_future(self.submit(images, budget_ms, deadline=deadline))

    def add_hook(self, hook: Hook) -> None:
        """Call ``hook`` with every result, on the thread that made it. What a hook raises is logged, not raised."""
        with self._lock:
            self._hooks = (*self._hooks, hook)

    def reload(self, bundle_path: Path | str | None = None, *, profile: Profile | Path | str | None = None) -> None:
        """Serve another bundle, or the same one as it is on disk now, from the next request on.

        The new engines are loaded and warmed beside the old ones, which go on answering; for that time both are in
        memory. When anything fails, the old ones stay.

        Args:
            bundle_path: The bundle's folder; None takes the present one's.
            profile: As for :meth:`open`.

        Raises:
            TocomError: What :meth:`open` raises; the runtime serves on as before.
        """
        with self._reload_lock:
            if self._state is not State.WARM:
                raise self._unusable("reload")
            path = self.bundle.path if bundle_path is None else bundle_path
            fresh: EngineSet | None = None
            try:
                fresh = EngineSet.load(path, self._options, profile)
                fresh.warm_up()
            except BaseException as error:
                if fresh is not None:
                    fresh.close()
                log.warning("reload of %s failed, serving on with %s: %s", path, self.bundle.path, error)
                raise
            with self._lock:
                if self.state is not State.WARM:  # closed by another thread, meanwhile
                    fresh.close()
                    raise self._unusable("reload")
                old, self._active = self._active, fresh
                self._counters.reloads += 1
            old.close()
            log.info("reloaded %s", fresh.bundle.path, extra={"event": "reload"})

    def stats(self) -> dict[str, Any]:
        """Return counts, misses, switches, recent quantiles and the latency model's state, as plain JSON content."""
        with self._lock:
            active = self._active
            controller = active.controller
            return {
                "state": self._state.value,
                "bundle": str(active.bundle.path),
                "backend": active.backend.name,
                "degrees": list(active.engines),
                "answers_checked": {str(degree): found.to_json() for degree, found in active.checked.items()},
                "estimated_bytes": active.estimated_bytes,
                **self._counters.snapshot(),
                "current_degree": None if controller is None else controller.current,
                "latency_model": None if controller is None else controller.state(),
            }

    def close(self) -> None:
        """Cancel what waits, finish what runs, release the engines. More than once is fine.

        From a signal's handler too: what runs on the very thread that the handler interrupts can only end after it, and
        then releases the engines.
        """
        if self._state is State.FORKED:
            return
        self._state = State.CLOSED
        self._queue.close()
        if not self._lock._is_owned():  # type: ignore[attr-defined]  # what threading.Condition asks an RLock, too
            self._release()

    def _release(self) -> None:
        self._queue.join()
        with self._lock:
            self._state = State.CLOSED
            self._active.close()

    def abandon(self) -> None:
        """Refuse every further call: this process was forked, and the engines' threads stayed in the other."""
        if self._state is State.CLOSED:
            return
        self._state = State.FORKED
        # Whoever held them is not in this process.
        self._lock, self._reload_lock = threading.RLock(), threading.RLock()
        self._queue.abandon(self._unusable("submit"))
        keep_for_ever(self._active)

    def __reduce__(self) -> NoReturn:
        raise RequestError(
            "A Runtime cannot be copied or sent to another process: its engines live in this one. Send the bundle's "
            "path, and call Runtime.open() in each process."
        )

    def _answer_submission(self, entry: Submission) -> Result:
        budget = (entry.deadline - entry.start) * 1e3 if entry.budgeted else None
        return self._answer(entry.images, entry.start, budget, None, (None, entry.token))

    def _answer(
        self,
        images: NDArray[np.float32],
        start: float,
        budget_ms: float | None,
        degree: int | None,
        place: tuple[Hashable, int] | None = None,
    ) -> Result:
        """Answer images that arrived at ``start``; only a deadline can make the budget zero or less.

        ``place`` is the request's source and its token in the load, where it has one already.
        """
        if place is None:
            caller = threading.get_ident()
            due = math.inf if budget_ms is None else start + budget_ms / 1e3
            place = caller, self._load.arrive(caller, start, due)
        try:
            return self._answer_in_turn(images, start, budget_ms, degree, place)
        except TocomError as error:
            self._counters.fail(error)
            raise
        finally:
            self._load.start(place[1])

    def _answer_in_turn(
        self,
        images: NDArray[np.float32],
        start: float,
        budget_ms: float | None,
        degree: int | None,
        place: tuple[Hashable, int],
    ) -> Result:
        with self._lock:
            self._load.start(place[1])
            active = self._active
            controller = active.controller
            if self._state is not State.WARM or controller is None:
                raise self._unusable("infer")
            images = active.check(images)
            begin = max(self._clock(), start)  # a clock may go back; a request never waits less than nothing
            queue_ms = (begin - start) * 1e3
            asked = len(images)
            images = active.filled(images)
            batch = len(images)
            left_ms = math.inf if budget_ms is None else budget_ms - queue_ms
            if degree is None:
                share_ms = self._load.share_ms(place[0], begin, left_ms, controller, batch)
                decision = controller.decide(share_ms, batch)
            else:
                decision = _pinned(active, controller, batch, left_ms, degree)
            taken = decision.degree
            outputs = active.engines[taken].run(images)
            check_outputs(outputs, images, taken)
            if asked < batch:
                outputs = {name: values[:asked] for name, values in outputs.items()}
            end = max(self._clock(), begin)
            latency_ms = (end - start) * 1e3
            met = budget_ms is None or latency_ms <= budget_ms
            before = controller.current
            controller.observe(taken, (end - begin) * 1e3, met, batch, degree is not None)
            switched = controller.current != before and before is not None
            self._counters.record(taken, latency_ms, queue_ms, budget_ms, met, decision.feasible, switched)
        if self.state is State.CLOSED:  # by a signal's handler on this thread, or another thread that waits for it
            self._release()
        if switched:
            log.info(
                "switched from degree %d to %d",
                before,
                taken,
                extra={"event": "switch", "from_degree": before, "to_degree": taken, "budget_ms": budget_ms},
            )
        result = Result(
            outputs,
            taken,
            latency_ms,
            queue_ms,
            met,
            decision.predicted_ms,
            budget_ms,
            decision.feasible,
            active.bundle.labels,
        )
        for hook in self._hooks:
            with _hook_guard():
                hook(result)
        return result

    def _unusable(self, call: str) -> TocomError:
        todo = {
            State.CLOSED: "Open the bundle again.",
            State.FORKED: "It was opened before this process was forked, and its engines' threads stayed behind: call "
            "Runtime.open() in each process (gunicorn: in post_fork, or without preload_app).",
        }.get(self._state, "Call warm_up() first.")
        return RequestError(f"Runtime.{call}() needs a warm runtime; this one is {self._state.value}. {todo}")


def _pinned(active: EngineSet, controller: Controller, batch: int, left_ms: float, degree: int) -> Decision:
    if degree not in active.engines:
        raise DegreeError(f"The 'degree' parameter must be one of {list(active.engines)}. Got {degree!r} instead.")
    predicted = controller.predict(degree, batch)
    return Decision(degree, predicted, predicted <= left_ms)


@contextlib.contextmanager
def _hook_guard() -> Iterator[None]:
    try:
        yield
    except Exception:  # a caller's hook may raise anything, and must not cost the answer
        log.exception("a hook failed")

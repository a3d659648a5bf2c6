"""The answering half of a runtime: one request in its turn, by the budget policy, from a call or from the queue."""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from math import inf
from typing import Any

from numpy.typing import NDArray

from tocom.errors import DegreeError, RequestError, TocomError
from tocom.runtime.checks import check_budget, check_deadline, check_outputs
from tocom.runtime.engine_set import EngineSet
from tocom.runtime.policy.choice import Decision
from tocom.runtime.policy.controller import Controller
from tocom.runtime.result import Result
from tocom.runtime.streaming import Streaming
from tocom.runtime.submission import Submission, SubmissionQueue

__all__ = ["Answering", "Hook", "State"]

log = logging.getLogger("tocom.runtime")

Hook = Callable[[Result], None]


class State(enum.Enum):
    """Life of a runtime: loaded, then warm, then closed; forked in a process that was forked from its own."""

    LOADED = "loaded"
    WARM = "warm"
    CLOSED = "closed"
    FORKED = "forked"


_WARM = State.WARM


class Answering(Streaming):
    """Answers requests with one set of engines, one at a time; the runtime opens and ends it."""

    def __init__(self, engine_set: EngineSet, *, queue_limit: int, clock: Callable[[], float]) -> None:
        self._active = engine_set
        super().__init__(clock)
        self._state = State.LOADED
        # A signal's handler runs on a thread that may hold it, and calls close() or stats().
        self._lock = threading.RLock()
        self._queue = SubmissionQueue(self._answer_submission, queue_limit)
        self._hooks: tuple[Hook, ...] = ()

    @property
    def state(self) -> State:
        """Where in its life the runtime is."""
        return self._state

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
            images: [batch, channels, height, width], float32 or uint8, as the manifest's input entry says; or a list of
                what :meth:`preprocess` takes, which is done within the budget. A batch smaller than the bundle's
                smallest is filled up, and the filling's answers are dropped.
            budget_ms: Milliseconds from this call to the answer; None sets no limit.
            deadline: A point in time of ``time.monotonic()``, seconds, instead of a budget.
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
        self, images: NDArray[Any], budget_ms: float | None = None, *, deadline: float | None = None
    ) -> Future[Result]:
        """Queue a request and return the future of its answer. The earliest deadline is answered first.

        Args:
            images: As for :meth:`infer`; not to be changed until the future is done.
            budget_ms: Milliseconds from this call to the answer, waiting included; None sets no limit.
            deadline: A point in time of ``time.monotonic()``, seconds, instead of a budget.

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
        token = self._load.arrive(None, start, inf if deadline is None else deadline)
        try:
            future = self._queue.put(images, deadline=deadline, start=start, token=token)
        except RequestError:
            self._load.start(token)
            raise
        # Cancelled before its turn, it waits no more.
        future.add_done_callback(lambda _: self._load.start(token))
        return future

    async def infer_async(
        self, images: NDArray[Any], budget_ms: float | None = None, *, deadline: float | None = None
    ) -> Result:
        """Await an answer without blocking the event loop; arguments and errors as for :meth:`submit`."""
        return await asyncio.wrap_future(self.submit(images, budget_ms, deadline=deadline))

    def add_hook(self, hook: Hook) -> None:
        """Call ``hook`` with every result, on the thread that made it. What a hook raises is logged, not raised."""
        with self._lock:
            self._hooks = (*self._hooks, hook)

    def _answer_submission(self, entry: Submission) -> Result:
        budget = (entry.deadline - entry.start) * 1e3 if entry.budgeted else None
        return self._answer(entry.images, entry.start, budget, None, (None, entry.token))

    def _answer(
        self,
        images: NDArray[Any],
        start: float,
        budget_ms: float | None,
        degree: int | None,
        arrival: tuple[Hashable, int] | None = None,
    ) -> Result:
        """Answer images that arrived at ``start``; only a deadline can make the budget zero or less.

        ``arrival`` is the request's source and its token in the load, where it has one already.
        """
        if arrival is None:
            caller = threading.get_ident()
            due = inf if budget_ms is None else start + budget_ms / 1e3
            arrival = caller, self._load.arrive(caller, start, due)
        try:
            with self._lock:
                self._load.start(arrival[1])
                active = self._active
                controller, state = active.controller, self._state
                if state is not _WARM or controller is None:
                    raise self._unusable("infer")
                images = active.check(images)
                begin = self._clock()
                if begin < start:  # a clock may go back; a request never waits less than nothing
                    begin = start
                queue_ms = (begin - start) * 1e3
                asked = batch = len(images)
                if asked < active.least_batch:
                    images = active.filled(images)
                    batch = active.least_batch
                left_ms = inf if budget_ms is None else budget_ms - queue_ms
                if degree is None:
                    share = self._load.share(arrival[0], begin, left_ms, controller, batch)
                    decision = controller.decide(share.ms, batch, shared=share.shared)
                else:
                    decision = _pinned(active, controller, batch, left_ms, degree)
                taken = decision.degree
                outputs = active.engines[taken].run(images)
                check_outputs(outputs, images, taken)
                if asked < batch:
                    outputs = {name: values[:asked] for name, values in outputs.items()}
                end = self._clock()
                if end < begin:
                    end = begin
                latency_ms = (end - start) * 1e3
                met = budget_ms is None or latency_ms <= budget_ms
                before = controller.current
                controller.observe(taken, (end - begin) * 1e3, met, batch, degree is not None)
                switched = controller.current != before and before is not None
                self._counters.record(taken, latency_ms, queue_ms, budget_ms, met, decision.feasible, switched)
        except BaseException as error:  # Ctrl-C while it waits for its turn, too
            self._load.start(arrival[1])
            if isinstance(error, TocomError):
                self._counters.fail(error)
            raise
        # Closed meanwhile, by a signal's handler on this thread or another thread that waits for it.
        if self._state is not state and self._state is State.CLOSED:
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
            active.labels,
        )
        for hook in self._hooks:
            try:
                hook(result)
            except Exception:  # a caller's hook may raise anything, and must not cost the answer
                log.exception("a hook failed")
        return result

    def _release(self) -> None:
        """Give the engines back; after :meth:`close`, once nothing runs."""
        raise NotImplementedError

    def _unusable(self, call: str) -> TocomError:
        todo = {
            State.CLOSED: "Open the bundle again.",
            State.FORKED: "It was opened before this process was forked, and its engines' threads stayed behind: call "
            "Runtime.open() in each process (gunicorn: in post_fork, or without preload_app).",
        }.get(self._state, "Call warm_up() first.")
        return RequestError(f"Runtime.{call}() needs a warm runtime; this one is {self._state.value}. {todo}")


def _pinned(active: EngineSet, controller: Controller, batch: int, left_ms: float, degree: int) -> Decision:
    # The engine's own integer, whatever kind of number names it.
    taken = next((each for each in active.engines if each == degree), None)
    if taken is None:
        raise DegreeError(f"The 'degree' parameter must be one of {list(active.engines)}. Got {degree!r} instead.")
    predicted = controller.predict(taken, batch)
    return Decision(taken, predicted, predicted <= left_ms)

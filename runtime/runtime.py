"""``Runtime``: the engines of a bundle, the latency model and the policy behind one call."""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.bundle import Bundle
from tocom.errors import DegreeError, RequestError
from tocom.profile import Profile
from tocom.runtime import policy
from tocom.runtime.backends import Backend, Engine, open_backend
from tocom.runtime.checks import check_budget, check_images
from tocom.runtime.latency import LatencyModel
from tocom.runtime.profiles import identity_of, matching_profile, short_profile
from tocom.runtime.result import Result

__all__ = ["Runtime", "State"]

log = logging.getLogger("tocom.runtime")


class State(enum.Enum):
    """Life of a runtime: loaded, then warm, then closed."""

    LOADED = "loaded"
    WARM = "warm"
    CLOSED = "closed"


class Runtime:
    """Engines of one bundle, resident; answers each request with the most accurate degree within its budget.

    Thread-safe: any thread may call any method. One inference runs at a time; the time that a call waits for its
    turn counts against its budget. Make one with :meth:`open`.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        engines: Mapping[int, Engine],
        *,
        profile: Profile | None = None,
        on_infeasible: str = "fastest",
        quantile: float = 0.95,
        hysteresis: float = 0.03,
        check_finite: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if on_infeasible not in policy.ON_INFEASIBLE:
            raise RequestError(
                f"The 'on_infeasible' parameter must be one of {', '.join(policy.ON_INFEASIBLE)}. "
                f"Got {on_infeasible!r} instead."
            )
        if not 0.5 <= quantile < 1:
            raise RequestError(f"The 'quantile' parameter must be in 0.5 … 1 (exclusive). Got {quantile!r} instead.")
        self.bundle = bundle
        self.backend = backend
        self.profile = profile
        self.state = State.LOADED
        self._engines = dict(sorted(engines.items()))
        self._on_infeasible = on_infeasible
        self._quantile = quantile
        self._hysteresis = hysteresis
        self._check_finite = check_finite
        self._clock = clock
        self._lock = threading.Lock()
        self._image_shape = bundle.image_shape
        self._batch_range = (bundle.batch[0], bundle.batch[2])
        self._model: LatencyModel | None = None
        self._accuracy: dict[int, float] = {}
        self._current: int | None = None
        self._answers: dict[int, int] = dict.fromkeys(self._engines, 0)
        self._misses = 0
        self._switches = 0

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
        check_finite: bool = False,
        warm: bool = True,
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
            hysteresis: Share by which a slower degree must beat the budget before the policy goes back to it.
            check_finite: Refuse images with NaN or infinity.
            warm: Call :meth:`warm_up` now.

        Raises:
            BundleError: The bundle is missing, corrupt, or was changed.
            DegreeError: ``degrees`` names one that the bundle lacks.
            EngineError: No backend, or a degree cannot be loaded.
            CalibrationError: ``profile`` is not valid, or was measured elsewhere.
            RequestError: Another argument is out of its range.
        """
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise RequestError(f"The 'threads' parameter must be an integer >= 1. Got {threads!r} instead.")
        bundle = Bundle(bundle_path)
        chosen = _chosen_degrees(bundle, degrees)
        opened = open_backend(backend, bundle, threads=threads)
        engines: dict[int, Engine] = {}
        try:
            identity = identity_of(bundle, opened)
            found = matching_profile(bundle, identity, chosen, profile)
            opened.prepare(chosen)
            for degree in chosen:
                engines[degree] = opened.load(degree)
            runtime = cls(
                bundle,
                opened,
                engines,
                profile=found,
                on_infeasible=on_infeasible,
                quantile=quantile,
                hysteresis=hysteresis,
                check_finite=check_finite,
            )
            log.info("opened %s on %s (%s): degrees %s", bundle.path, opened.name, opened.reason, list(engines))
            if warm:
                runtime.warm_up()
        except BaseException:
            for engine in engines.values():
                engine.close()
            opened.close()
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
            f"state={self.state.value!r})"
        )

    @property
    def degrees(self) -> tuple[int, ...]:
        """The resident degrees, ascending."""
        return tuple(self._engines)

    def warm_up(self) -> None:
        """Run every degree until its first-call costs are paid; without a profile, measure a short one.

        Raises:
            EngineError: A degree does not run.
            RequestError: The runtime is closed.
        """
        with self._lock:
            if self.state is State.CLOSED:
                raise self._unusable("warm_up")
            if self.state is State.WARM:
                return
            images = np.zeros((self.bundle.batch[1], *self._image_shape), np.float32)
            for engine in self._engines.values():
                for _ in range(2):
                    engine.run(images)
            if self.profile is None:
                log.warning(
                    "no profile of this device for %s: measuring a short one; 'tocom calibrate' makes a good one",
                    self.bundle.path,
                )
                self.profile = short_profile(self.bundle, self.backend, self._engines, images)
            self._adopt(self.profile)
            self.state = State.WARM

    def infer(
        self, images: NDArray[np.float32], budget_ms: float | None = None, *, degree: int | None = None
    ) -> Result:
        """Answer one request.

        Args:
            images: [batch, channels, height, width], float32, as the manifest's input entry says.
            budget_ms: Milliseconds from this call to the answer; None sets no limit.
            degree: Run this degree whatever the budget; for calibration and comparisons.

        Raises:
            RequestError: An argument is out of its range, or the runtime is not warm or is closed.
            DegreeError: ``degree`` is not resident.
            BudgetError: No degree meets the budget and the runtime was opened with ``on_infeasible="raise"``.
            EngineError: The device failed.
        """
        start = self._clock()
        budget = None if budget_ms is None else check_budget(budget_ms)
        images = check_images(images, self._image_shape, self._batch_range, finite=self._check_finite)
        with self._lock:
            if self.state is not State.WARM:
                raise self._unusable("infer")
            begin = self._clock()
            queue_ms = (begin - start) * 1e3
            decision = self._decide(len(images), None if budget is None else budget - queue_ms, degree)
            outputs = self._engines[decision.degree].run(images)
            end = self._clock()
            latency_ms = (end - start) * 1e3
            met = budget is None or latency_ms <= budget
            self._record(decision.degree, (end - begin) * 1e3, len(images), met, pinned=degree is not None)
        return Result(
            outputs=outputs,
            degree=decision.degree,
            latency_ms=latency_ms,
            queue_ms=queue_ms,
            met_budget=met,
            predicted_ms=decision.predicted_ms,
            budget_ms=budget,
            feasible=decision.feasible,
        )

    def stats(self) -> dict[str, Any]:
        """Return counts per degree, misses, switches and the latency model's state, as plain JSON content."""
        with self._lock:
            return {
                "state": self.state.value,
                "backend": self.backend.name,
                "requests": sum(self._answers.values()),
                "answers": {str(degree): count for degree, count in self._answers.items()},
                "misses": self._misses,
                "switches": self._switches,
                "latency_model": None if self._model is None else self._model.state(),
            }

    def close(self) -> None:
        """Release the engines. More than once is fine; any other call afterwards is an error."""
        with self._lock:
            if self.state is State.CLOSED:
                return
            self.state = State.CLOSED
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()
            self.backend.close()

    def _adopt(self, profile: Profile) -> None:
        self._model = LatencyModel(
            {degree: entry.latency for degree, entry in profile.degrees.items() if degree in self._engines},
            batch=profile.batch,
        )
        accuracies = {d: None if e.accuracy is None else e.accuracy.value for d, e in profile.degrees.items()}
        exported = {degree: entry.accuracy for degree, entry in self.bundle.degrees.items()}
        self._accuracy = policy.rank_accuracies(list(self._engines), accuracies, exported)

    def _decide(self, batch: int, left_ms: float | None, degree: int | None) -> policy.Decision:
        model = self._model
        assert model is not None  # state is WARM
        if degree is not None:
            if degree not in self._engines:
                raise DegreeError(
                    f"The 'degree' parameter must be one of {list(self._engines)}. Got {degree!r} instead."
                )
            predicted = model.predict_ms(degree, self._quantile, batch)
            return policy.Decision(degree, predicted, left_ms is None or predicted <= left_ms)
        candidates = policy.frontier(
            [
                policy.Candidate(d, accuracy, model.predict_ms(d, self._quantile, batch))
                for d, accuracy in self._accuracy.items()
            ]
        )
        return policy.choose(
            candidates,
            float("inf") if left_ms is None else left_ms,
            current=self._current,
            hysteresis=self._hysteresis,
            on_infeasible=self._on_infeasible,
        )

    def _record(self, degree: int, compute_ms: float, batch: int, met: bool, *, pinned: bool) -> None:
        assert self._model is not None  # state is WARM
        self._model.observe(degree, compute_ms, batch)
        self._answers[degree] += 1
        self._misses += not met
        if not pinned:
            self._switches += self._current is not None and degree != self._current
            self._current = degree

    def _unusable(self, call: str) -> RequestError:
        todo = "Open the bundle again." if self.state is State.CLOSED else "Call warm_up() first."
        return RequestError(f"Runtime.{call}() needs a warm runtime; this one is {self.state.value}. {todo}")


def _chosen_degrees(bundle: Bundle, degrees: Sequence[int] | None) -> list[int]:
    if degrees is None:
        return list(bundle.degrees)
    missing = [degree for degree in degrees if degree not in bundle.degrees]
    if missing or not degrees:
        raise DegreeError(
            f"The 'degrees' parameter must name degrees of {bundle.path}: {list(bundle.degrees)}. "
            f"Got {list(degrees)} instead."
        )
    return sorted(set(degrees))

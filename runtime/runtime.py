"""``Runtime``: the engines of a bundle, the latency model and the policy behind one call."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tocom.errors import RequestError
from tocom.formats.bundle import Bundle
from tocom.formats.profile import Profile
from tocom.formats.signatures import load_public_keys
from tocom.runtime.answering import Answering, State
from tocom.runtime.backends.base import Backend
from tocom.runtime.checks import check_goal, check_open_options, check_timeout
from tocom.runtime.engine_set import EngineSet, OpenOptions
from tocom.runtime.lifecycle import keep_forever, opening, track
from tocom.runtime.policy.controller import ControllerConfig

__all__ = ["Runtime", "State"]

log = logging.getLogger("tocom.runtime")


class Runtime(Answering):
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
        super().__init__(engine_set, queue_limit=queue_limit, clock=clock)
        self._options = options
        # A service may go to another folder, as daemons do, before it reloads.
        self._path = engine_set.bundle.path.absolute()
        self._reload_lock = threading.RLock()
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
        goal: str = "accuracy",
        max_loss: float | None = None,
        warm: bool = True,
        trusted_keys: Sequence[Path | str] | None = None,
        alignment: bool = True,
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
            timeout_s: Seconds until an inference is given up as lost, with an EngineError; None waits forever.
                ``auto`` is 60 on a GPU and None on the CPU, where the caller's own thread computes. A number moves
                inferences to a thread of the runtime's own, which costs about 30 µs each.
            check_answers: Serve no degree whose answers to the bundle's reference images are wrong: each is compared
                at the smallest, the optimal and the largest batch, plainly and captured, on a reload too. False is for
                those who know why an engine differs.
            goal: ``accuracy`` takes the most accurate degree within the budget; ``energy`` the one that takes the least
                energy among those within ``max_loss`` of the most accurate, by a profile that holds both.
            max_loss: Share of accuracy that ``goal="energy"`` may cost, such as 0.01.
            warm: Call :meth:`warm_up` now.
            trusted_keys: Files of public keys; a bundle, or an engine, that none of them signed is refused, on a
                reload too. None asks for no signature.
            alignment: Map features by the alignment that ``tocom calibrate --align`` fitted here, where there is one.

        Raises:
            BundleError: The bundle is missing, corrupt, was changed, or is not signed by a trusted key.
            AlignmentError: The alignment for this bundle and device is damaged.
            DegreeError: ``degrees`` names one that the bundle lacks.
            EngineError: No backend, no degree fits, one cannot be loaded, or none answers rightly.
            CalibrationError: ``profile`` is not valid, or was measured elsewhere; or it lacks what ``goal`` needs.
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
            goal=goal,
            max_loss=check_goal(goal, max_loss),
            trusted_keys=None if trusted_keys is None else load_public_keys(trusted_keys),
            alignment=alignment,
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Runtime({str(self.bundle.path)!r}, backend={self.backend.name!r}, degrees={list(self.degrees)}, "
            f"state={self._state.value!r})"
        )

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
        return self._active.labels

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
                self._active = self._active.warm_up(expect_profile=expect_profile)
                if self._state is State.LOADED:
                    self._state = State.WARM
                elif self._state is State.CLOSED:  # by a signal's handler meanwhile
                    self._active.close()
            if self._state is not State.WARM:
                raise self._unusable("warm_up")

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
            path = self._path if bundle_path is None else Path(bundle_path).absolute()
            fresh: EngineSet | None = None
            try:
                with opening():
                    fresh = EngineSet.load(path, self._options, profile)
                    fresh = fresh.warm_up()
            except BaseException as error:
                if fresh is not None:
                    fresh.close()
                log.warning("reload of %s failed, serving on with %s: %s", path, self.bundle.path, error)
                raise
            with self._lock:
                if self.state is not State.WARM:  # closed by another thread, meanwhile
                    fresh.close()
                    raise self._unusable("reload")
                old, self._active, self._path = self._active, fresh, path
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
                "aligned": list(active.aligned),
                "answers_checked": {str(degree): found.to_json() for degree, found in active.checked.items()},
                "estimated_bytes": active.estimated_bytes,
                **self._counters.snapshot(),
                "current_degree": None if controller is None else controller.current,
                "latency_model": None if controller is None else controller.state(),
            }

    def close(self) -> None:
        """Cancel what waits, end streams, finish what runs, release the engines. More than once is fine.

        From a signal's handler too: what runs on the very thread that the handler interrupts can only end after it, and
        then releases the engines.
        """
        if self._state is State.FORKED:
            return
        for streams in list(self._streams):
            streams.stop()
        self._state = State.CLOSED
        self._queue.close()
        if not self._lock._is_owned():  # what threading.Condition asks an RLock, too
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
        keep_forever(self._active)

    def __reduce__(self) -> NoReturn:
        raise RequestError(
            "A Runtime cannot be copied or sent to another process: its engines live in this one. Send the bundle's "
            "path, and call Runtime.open() in each process."
        )

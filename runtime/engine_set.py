"""The engines of one bundle, loaded, profiled and warm: what a runtime serves from, and swaps as a whole on reload."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from tocom.errors import DegreeError, EngineError
from tocom.formats.bundle import Bundle
from tocom.formats.profile import Profile
from tocom.formats.references import read_references
from tocom.formats.signatures import PublicKey
from tocom.runtime.aligned import AlignedEngine, matching_alignment
from tocom.runtime.answers import Checked, advice, batches_to_check, check_engine, version_of
from tocom.runtime.backends.arrays import DeviceImages
from tocom.runtime.backends.base import Backend, Engine
from tocom.runtime.backends.select import ON_GPU, WITH_ENGINES, open_backend
from tocom.runtime.checks import check_finite, unfit_images
from tocom.runtime.guard import Guard, GuardedEngine
from tocom.runtime.lifecycle import opening
from tocom.runtime.memory.needs import Need, best_subset, set_bytes
from tocom.runtime.policy.controller import Controller, ControllerConfig
from tocom.runtime.profiles import batch_profiles, identity_of, matching_profile, short_profile
from tocom.runtime.worth import by_value, expected_latency, ranks

__all__ = ["EngineSet", "OpenOptions"]

log = logging.getLogger("tocom.runtime")


@dataclass(frozen=True)
class OpenOptions:
    """What :meth:`Runtime.open` was asked for, checked, under its names; a reload uses it again.

    ``controller`` holds how degrees are chosen, ``trusted_keys`` the keys that were read.
    """

    backend: str = "auto"
    degrees: tuple[int, ...] | None = None
    threads: int | None = None
    memory_limit_bytes: int | None = None
    check_finite: bool = False
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    timeout_s: float | str | None = "auto"
    check_answers: bool = True
    goal: str = "accuracy"
    max_loss: float = 0.0
    trusted_keys: tuple[PublicKey, ...] | None = None
    alignment: bool = True


class EngineSet:
    """Engines of one bundle. Make one with :meth:`load`, then :meth:`warm_up`. Not thread-safe."""

    def __init__(self, bundle: Bundle, backend: Backend, engines: Mapping[int, Engine], options: OpenOptions) -> None:
        self.bundle = bundle
        self.backend = backend
        self.labels = bundle.labels
        timeout_s = backend.timeout_s if options.timeout_s == "auto" else options.timeout_s
        self._guard = None if timeout_s is None else Guard(float(timeout_s))
        self.engines: dict[int, Engine] = dict(sorted(engines.items()))
        if self._guard is not None:
            self.engines = {
                degree: GuardedEngine(engine, self._guard, degree) for degree, engine in self.engines.items()
            }
        self.profile: Profile | None = None
        # Of other batches: what a micro-batch costs.
        self.batched: Mapping[int, Profile] = {}
        self.needs: Mapping[int, Need] = {}
        self.controller: Controller | None = None
        # What came of the comparison with the reference answers, of degrees that are not served too.
        self.checked: dict[int, Checked] = {}
        self.aligned: tuple[int, ...] = ()
        self._options = options
        # Opens the next backend that ``auto`` would choose, given why this one was not taken.
        self._next: Callable[[str], EngineSet] | None = None
        self.least_batch, _, self._most_batch = bundle.batch
        self._image_shape = bundle.image_shape
        self._dtype = np.dtype(bundle.input_type)

    @classmethod
    def load(cls, path: Path | str, options: OpenOptions, profile: Profile | Path | str | None = None) -> EngineSet:
        """Check the bundle's hashes, choose the degrees that fit, and load them.

        Args:
            path: The bundle's folder.
            options: What to load and how.
            profile: Must fit when given; None looks beside the bundle.

        Raises:
            BundleError: The bundle is missing, corrupt, or was changed.
            DegreeError: ``options.degrees`` names one that the bundle lacks.
            EngineError: No backend, no degree fits, or one cannot be loaded.
            CalibrationError: The given profile does not hold here.
        """
        try:
            with opening():
                bundle = Bundle(path, verify=False, trusted_keys=options.trusted_keys)
                wanted = _wanted_degrees(bundle, options.degrees)
                # Hashed beside what follows; whoever parses or maps a file waits for its check, and the end for all.
                bundle.begin_verify()
                try:
                    return cls._load(bundle, wanted, options, profile)
                finally:
                    bundle.end_verify()
        except MemoryError as error:
            raise EngineError(
                f"Out of memory while opening {path}. Free some, or keep fewer degrees resident."
            ) from error

    @classmethod
    def _load(
        cls,
        bundle: Bundle,
        wanted: Sequence[int],
        options: OpenOptions,
        profile: Profile | Path | str | None,
        refused: dict[str, str] | None = None,
    ) -> EngineSet:
        refused = dict(refused or {})
        while True:
            backend = open_backend(options.backend, bundle, threads=options.threads, refused=refused)
            try:
                loaded = cls._load_into(backend, bundle, wanted, options, profile)
                loaded._next = lambda why, name=backend.name: cls._load(
                    bundle, wanted, options, profile, {**refused, name: why}
                )
                return loaded
            except EngineError as error:
                if options.backend != "auto" or backend.name not in WITH_ENGINES:
                    raise
                log.warning("%s does not serve %s, going on to the next backend: %s", backend.name, bundle.path, error)
                refused[backend.name] = str(error)

    @classmethod
    def _load_into(
        cls,
        backend: Backend,
        bundle: Bundle,
        wanted: Sequence[int],
        options: OpenOptions,
        profile: Profile | Path | str | None,
    ) -> EngineSet:
        engines: dict[int, Engine] = {}
        try:
            found = matching_profile(bundle, identity_of(bundle, backend), wanted, profile)
            accuracy = ranks(bundle, wanted, found, goal=options.goal, max_loss=options.max_loss)
            latency = expected_latency(bundle, wanted, found)
            needs = backend.needs(wanted)
            chosen = tuple(wanted)
            if options.memory_limit_bytes is not None:
                best = best_subset(needs, accuracy, latency, options.memory_limit_bytes, shared=backend.shares_weights)
                chosen = best.degrees
                if len(chosen) < len(wanted):
                    left_out = sorted(set(wanted) - set(chosen))
                    log.warning(
                        "memory_limit_bytes=%d holds the degrees %s (about %d bytes); left out: %s",
                        options.memory_limit_bytes,
                        list(chosen),
                        best.bytes,
                        left_out,
                    )
            backend.prepare(chosen)
            for degree in by_value(chosen, accuracy, latency):
                try:
                    engines[degree] = backend.load(degree)
                except MemoryError as error:
                    # The most valuable degrees are loaded first, so what is lost here is worth least.
                    log.warning("out of memory at degree %d, serving without it: %s", degree, error)
            if not engines:
                raise EngineError(
                    f"No degree of {bundle.path} fits into memory. Free some, or export at a lower precision."
                )
            bundle.check_unchanged()
        except BaseException:
            for engine in engines.values():
                engine.close()
            backend.close()
            raise
        loaded = cls(bundle, backend, engines, options)
        loaded.profile = found
        if found is not None:
            loaded.batched = batch_profiles(bundle, backend, wanted)
        loaded.needs = needs
        log.info(
            "opened %s on %s (%s): degrees %s, about %d MiB",
            bundle.path,
            backend.name,
            backend.reason,
            list(loaded.engines),
            loaded.estimated_bytes >> 20,
        )
        return loaded

    def warm_up(self, *, expect_profile: bool = True) -> EngineSet:
        """Run every degree on the reference images until its first-call costs are paid; drop those that answer wrongly.

        Without a profile, measure a short one.

        Args:
            expect_profile: Warn when there is none.

        Returns:
            The set that answers: this one, or the next backend's, where ``auto`` chose a GPU that is wrong at every
            degree; this one is closed then.

        Raises:
            BundleError: The reference answers are missing or damaged, or no trusted key signed the alignment.
            AlignmentError: The on-device alignment is damaged.
            EngineError: A degree does not run, or none answers rightly.
        """
        images = np.zeros((self.bundle.batch[1], *self._image_shape), self._dtype)
        if self._options.check_answers:
            try:
                self._check_answers()
            except EngineError as error:
                if self._options.backend != "auto" or self.backend.name not in ON_GPU or self._next is None:
                    raise
                log.warning("%s is passed over for %s: %s", self.backend.name, self.bundle.path, error)
                self.close()
                following = self._next(str(error))
                try:
                    return following.warm_up(expect_profile=expect_profile)
                except BaseException:
                    following.close()
                    raise
        else:
            for engine in self.engines.values():
                for _ in range(2):
                    engine.run(images)
        if self._options.alignment:
            self._align()  # what is compared with the reference answers is the engines' own
        if self.profile is None:
            if expect_profile:
                log.warning(
                    "no profile of this device for %s: measuring a short one; 'tocom calibrate' makes a good one",
                    self.bundle.path,
                )
            self.profile = short_profile(self.bundle, self.backend, self.engines, images)
        degrees = list(self.engines)
        self.controller = Controller(
            {degree: self.profile.degrees[degree].latency for degree in degrees},
            ranks(self.bundle, degrees, self.profile, goal=self._options.goal, max_loss=self._options.max_loss),
            batch=self.profile.batch,
            config=self._options.controller,
            batched={
                batch: {degree: profile.degrees[degree].latency for degree in degrees}
                for batch, profile in self.batched.items()
            },
        )
        return self

    @property
    def estimated_bytes(self) -> int:
        """Estimated memory of the resident engines."""
        return set_bytes([self.needs[degree] for degree in self.engines], shared=self.backend.shares_weights)

    def _check_answers(self) -> None:
        references = read_references(self.bundle)
        batches = sorted({*batches_to_check(self.bundle.batch), *self.batched})
        name = version_of(self.backend)
        for degree, engine in list(self.engines.items()):
            checked = check_engine(engine, degree, references, batches)
            self.checked[degree] = checked
            if not checked.is_right:
                log.warning(
                    "degree %d is not served: %s answers wrongly (%s). %s",
                    degree,
                    name,
                    checked.describe(),
                    advice(self.bundle.path, self.backend),
                )
                engine.close()
                del self.engines[degree]
        if not self.engines:
            found = "; ".join(f"degree {degree}, {each.describe()}" for degree, each in self.checked.items())
            raise EngineError(
                f"{name} answers wrongly at every degree of {self.bundle.path}, so nothing is served: {found}. "
                f"{advice(self.bundle.path, self.backend)}"
            )

    def _align(self) -> None:
        alignment = matching_alignment(self.bundle, self.backend)
        if alignment is None:
            return
        self.engines = {
            degree: AlignedEngine(engine, alignment.maps[degree], alignment.head)
            if degree in alignment.maps
            else engine
            for degree, engine in self.engines.items()
        }
        self.aligned = tuple(degree for degree in self.engines if degree in alignment.maps)
        log.info("features of the degrees %s are aligned, as fitted on %d images", self.aligned, alignment.images)

    def check(self, images: Any) -> Any:
        """Return the images as the engines take them.

        Raises:
            RequestError: They do not fit the engines.
        """
        if not isinstance(images, ndarray):
            adopted = self.backend.adopt(images)
            images = images if adopted is None else adopted
        # Fewer images than the engines take are filled up; those in GPU memory are not.
        if isinstance(images, ndarray):
            fits, least = images.dtype == self._dtype, 1
        else:
            fits, least = isinstance(images, DeviceImages), self.least_batch
        if not fits or images.shape[1:] != self._image_shape or not least <= len(images) <= self._most_batch:
            raise unfit_images(images, self._dtype, self._image_shape, self.bundle.batch)
        if self._options.check_finite:
            check_finite(images, "check_finite is on")
        return images

    def filled(self, images: Any) -> Any:
        """Return too few images as a batch that the engines take: the last one is repeated."""
        return np.concatenate([images, np.repeat(images[-1:], self.least_batch - len(images), axis=0)])

    def close(self) -> None:
        """Release the engines and the backend. What a lost device refuses is logged: nobody could do more."""
        engines = list(self.engines.values())
        self.engines.clear()

        def release() -> None:
            for close in (*(engine.close for engine in engines), self.backend.close):
                try:
                    close()
                except EngineError as error:
                    log.warning("while closing %s: %s", self.bundle.path, error)

        if self._guard is None:
            release()
        else:
            self._guard.close(release)


def _wanted_degrees(bundle: Bundle, degrees: Sequence[int] | None) -> list[int]:
    if degrees is None:
        return list(bundle.degrees)
    if not degrees or any(degree not in bundle.degrees for degree in degrees):
        raise DegreeError(
            f"The 'degrees' parameter must name degrees of {bundle.path}: {list(bundle.degrees)}. "
            f"Got {list(degrees)} instead."
        )
    return sorted(set(degrees))

"""``calibrate``: latency and accuracy of every degree, saved as the profile that the runtime finds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from tocom.calibration.accuracy.answers import collect_answers, read_samples
from tocom.calibration.accuracy.intervals import check_above_chance, check_interval, images_needed
from tocom.calibration.accuracy.precisions import compare_precisions
from tocom.calibration.device_state.energy import measure_energy
from tocom.calibration.device_state.reader import open_reader
from tocom.calibration.latency.measure import LatencyRun, check_precision, run_latency
from tocom.calibration.suggest import with_dominated
from tocom.errors import CalibrationError, OutputError, RequestError
from tocom.formats.bundle import Bundle
from tocom.formats.profile import PROFILES_FOLDER, DegreeProfile, Profile
from tocom.runtime import Runtime
from tocom.runtime.profiles import INTERVAL, identity_of
from tocom.system.files import atomic_path, check_writable
from tocom.system.numbers import is_integer
from tocom.system.progress import Progress, silent
from tocom.version import __version__

__all__ = ["calibrate", "saved_profile"]

# The sign test sees a difference of a hundredth of the spread in far fewer rounds than a quantile's interval needs.
_PRECISION_SAMPLES = 100


def calibrate(
    bundle: Path | str,
    images: Path | str | Iterable[tuple[Any, int | None]] | None = None,
    *,
    samples: int = 400,
    tolerance: float = 0.03,
    backend: str = "auto",
    threads: int | None = None,
    batch: int | None = None,
    interval_points: float | None = None,
    against: Path | str | None = None,
    seed: int = 0,
    save: bool = True,
    trusted_keys: Sequence[Path | str] | None = None,
    progress: Progress = silent,
) -> Profile:
    """Measure a bundle on this device and save the profile to ``bundle/profiles/``.

    Args:
        bundle: The bundle's folder.
        images: What :func:`collect_answers` takes; None measures latency alone.
        samples: Most timed inferences per degree after the warm-up.
        tolerance: Half-width of the quantiles' 95 % intervals that is narrow enough to stop before, as a share.
        backend: A backend's name, or ``auto``.
        threads: CPU threads of one inference; None takes the usable physical cores.
        batch: Images per inference; None takes the bundle's optimal batch. Of other sizes :meth:`Runtime.streams`
            makes use, where they are measured beside it.
        interval_points: Refuse images that give an accuracy's 95 % interval wider than this to either side, in
            percentage points; None takes what they give.
        against: Bundle of the same model at another precision, such as the float32 one that an INT8 bundle was made
            from: both are timed in turn, and the profile notes the winner per degree.
        seed: Seed of the order of measurement.
        save: Write the profile beside the bundle, and all samples as CSV beside the profile.
        trusted_keys: As for :meth:`Runtime.open`.
        progress: Called with the stage, the steps done and the steps in all.

    Raises:
        BundleError: The bundle is missing or was changed.
        DataError: The images cannot be read or used, or are too few for ``interval_points``.
        CalibrationError: No degree is shown to be more accurate than chance, on 30 labelled images or more.
        EngineError: A degree cannot be loaded or run.
        RequestError: ``against`` is of another model, or of the same precision; or ``batch`` is out of range.
        OutputError: The profile cannot be written: found before the work, or it holds the profile as ``unsaved``.
    """
    check_precision(samples, tolerance)
    if interval_points is not None:
        images_needed(0.5, interval_points / 100)  # raises what is out of range, before a bundle is opened
    with Runtime.open(bundle, backend, threads=threads, warm=False, trusted_keys=trusted_keys) as runtime:
        if save:
            check_writable(runtime.bundle.path / PROFILES_FOLDER)
        least, _, most = runtime.bundle.batch
        if batch is not None and not is_integer(batch, least, most):
            raise RequestError(
                f"The 'batch' parameter must be from {least} to {most}, as in the bundle. Got {batch!r}."
            )
        runtime.warm_up(expect_profile=False)
        if images is not None and against is not None:
            # Read twice: an iterable of samples would be used up.
            images = read_samples(images, runtime.bundle.labels, classes=runtime.bundle.classes)
        # Accuracy first: bad images show within seconds, before minutes of timing.
        answers = None if images is None else collect_answers(runtime, images, progress=progress)
        accuracy = {} if answers is None else answers.accuracy()
        agreement = {} if answers is None or answers.labels is None else answers.agreement()
        if accuracy and (classes := runtime.bundle.classes) is not None and classes > 1:
            check_above_chance(accuracy, classes)
        if interval_points is not None and accuracy:
            check_interval(accuracy, interval_points)
        identity = identity_of(runtime.bundle, runtime.backend, batch)
        reader = open_reader(identity["device"])
        run = run_latency(
            runtime, samples=samples, tolerance=tolerance, batch=batch, seed=seed, reader=reader, progress=progress
        )
        energy = measure_energy(runtime, reader, batch=batch, seed=seed, progress=progress)
        latency = run.latency
        precisions = {}
        if against is not None:
            shared = [degree for degree in Bundle(against, verify=False).degrees if degree in runtime.degrees]
            with Runtime.open(
                against, runtime.backend.name, degrees=shared or None, threads=threads, warm=False
            ) as other:
                other.warm_up(expect_profile=False)
                precisions = compare_precisions(
                    runtime,
                    other,
                    samples=min(samples, _PRECISION_SAMPLES),
                    seed=seed,
                    answers=answers,
                    other_answers=None if images is None else collect_answers(other, images, progress=progress),
                    progress=progress,
                )
        profile = Profile(
            bundle_fingerprint=identity.pop("bundle"),
            **identity,
            model=runtime.bundle.model_name,
            degrees={
                degree: DegreeProfile(
                    latency[degree],
                    accuracy.get(degree),
                    agreement.get(degree),
                    energy=energy.get(degree),
                    precisions=precisions.get(degree),
                )
                for degree in latency
            },
            interval=INTERVAL,
            measured={
                "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "tocom": __version__,
                "seed": seed,
                "reference_answers": runtime.stats()["answers_checked"],
                **run.described(),
            },
            device_state=run.state,
        )
        profile = with_dominated(profile)
        if save:
            try:
                profile.save(runtime.bundle.path)
                _save_samples(run, runtime.bundle.path / PROFILES_FOLDER / f"{profile.fingerprint}.csv")
            except OutputError as error:
                error.unsaved = profile
                raise
    return profile


def _save_samples(run: LatencyRun, path: Path) -> None:
    """Write every sample in the order of the rounds, warm-up included: outliers are to be looked at, not dropped."""
    header = ",".join(["round", "seconds", "warmup", *(f"degree_{degree}_ms" for degree in run.degrees)])
    rounds = np.arange(len(run.rounds_ms))
    table = np.column_stack([rounds, run.seconds, rounds < run.steadiness.warmup_rounds, run.rounds_ms])
    formats = ["%d", "%.3f", "%d", *["%.4f"] * len(run.degrees)]
    with atomic_path(path) as beside:
        np.savetxt(beside, table, formats, delimiter=",", header=header, comments="")


def saved_profile(bundle: Path | str, *, backend: str = "auto", threads: int | None = None) -> Profile:
    """Return the saved profile that holds for this bundle, device and power mode; measure nothing.

    Raises:
        BundleError: The bundle is missing or was changed.
        CalibrationError: No saved profile holds here.
    """
    with Runtime.open(bundle, backend, threads=threads, warm=False) as runtime:
        profile = runtime.profile
    if profile is None:
        raise CalibrationError(
            f"No profile beside {bundle} holds for this device, backend and power mode. Measure one: "
            f"tocom calibrate {bundle}."
        )
    return profile

"""``calibrate``: latency and accuracy of every degree, saved as the profile that the runtime finds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tocom import __version__
from tocom.calibration.accuracy import check_interval, collect_answers
from tocom.calibration.latency import Progress, measure_latency
from tocom.profile import DegreeProfile, Profile
from tocom.runtime import Runtime
from tocom.runtime.profiles import INTERVAL, identity_of

__all__ = ["calibrate"]


def calibrate(
    bundle: Path | str,
    images: Path | str | Iterable[tuple[Any, int | None]] | None = None,
    *,
    samples: int = 200,
    warmup: int = 5,
    backend: str = "auto",
    threads: int | None = None,
    degrees: Sequence[int] | None = None,
    interval_points: float | None = None,
    seed: int = 0,
    save: bool = True,
    progress: Progress | None = None,
) -> Profile:
    """Measure a bundle on this device and save the profile to ``bundle/profiles/``.

    Args:
        bundle: The bundle's folder.
        images: What :func:`collect_answers` takes; None measures latency alone.
        samples: Timed inferences per degree.
        warmup: Inferences per degree before them.
        backend: A backend's name, or ``auto``.
        threads: CPU threads of one inference; None takes the usable physical cores.
        degrees: Degrees to measure; None takes all.
        interval_points: Refuse images that give an accuracy's 95 % interval wider than this to either side, in
            percentage points; None takes what they give.
        seed: Of the order of measurement.
        save: Write the profile beside the bundle.
        progress: Called with the stage, the steps done and the steps in all.

    Raises:
        BundleError: The bundle is missing or was changed.
        DataError: The images cannot be read or used, or are too few for ``interval_points``.
        EngineError: A degree cannot be loaded or run.
        OutputError: The profile cannot be written.
    """
    with Runtime.open(bundle, backend, degrees=degrees, threads=threads, warm=False) as runtime:
        runtime.warm_up(expect_profile=False)
        # Accuracy first: bad images show within seconds, before minutes of timing.
        answers = None if images is None else collect_answers(runtime, images, progress=progress)
        accuracy = {} if answers is None else answers.accuracy()
        agreement = {} if answers is None or answers.labels is None else answers.agreement()
        if interval_points is not None and accuracy:
            check_interval(accuracy, interval_points)
        latency = measure_latency(runtime, samples=samples, warmup=warmup, seed=seed, progress=progress)
        identity = identity_of(runtime.bundle, runtime.backend)
        profile = Profile(
            device=identity["device"],
            backend=identity["backend"],
            precision=identity["precision"],
            batch=identity["batch"],
            threads=identity["threads"],
            bundle_fingerprint=identity["bundle"],
            model=runtime.bundle.model_name,
            degrees={
                degree: DegreeProfile(latency[degree], accuracy.get(degree), agreement.get(degree))
                for degree in latency
            },
            interval=INTERVAL,
            measured={
                "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "tocom": __version__,
                "how": "interleaved over the degrees in random order",
                "seed": seed,
                "warmup": warmup,
            },
        )
        if save:
            profile.save(runtime.bundle.path)
    return profile

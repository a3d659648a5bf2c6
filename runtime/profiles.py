"""Finding the profile that holds here, or measuring a short one."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import CalibrationError
from tocom.formats.bundle import Bundle
from tocom.formats.profile import DegreeProfile, Latency, Profile
from tocom.runtime.backends.base import Backend, Engine
from tocom.system.cpu import power_mode
from tocom.version import __version__

__all__ = ["INTERVAL", "batch_profiles", "identity_of", "latency_of", "matching_profile", "short_profile"]

log = logging.getLogger("tocom.runtime")

INTERVAL = "one call of the engine: images in host memory to outputs in host memory; no queueing, no preprocessing"
_SHORT_ROUNDS = 8
_SHORT_SECONDS = 5.0


def identity_of(bundle: Bundle, backend: Backend, batch: int | None = None) -> dict[str, Any]:
    """Return what a profile must hold for, to be used with this bundle and backend, in the power mode set now."""
    mode = power_mode()
    return {
        "device": {**backend.device, "power_mode": mode} if mode else dict(backend.device),
        "backend": backend.name,
        "precision": bundle.precision,
        "batch": bundle.batch[1] if batch is None else batch,
        "threads": backend.threads,
        "bundle": bundle.fingerprint,
    }


def matching_profile(
    bundle: Bundle, identity: Mapping[str, Any], degrees: Sequence[int], given: Profile | Path | str | None
) -> Profile | None:
    """Return the profile to use.

    Args:
        bundle: The bundle.
        identity: What the profile must hold for.
        degrees: Degrees that it must cover.
        given: The caller's profile, which must fit; None looks beside the bundle, and ignores with a warning what
            does not fit.

    Raises:
        CalibrationError: The given profile does not hold here.
    """
    if given is not None:
        profile = given if isinstance(given, Profile) else Profile.load(given)
        why = _unfit(profile, identity, degrees)
        if why is not None:
            raise CalibrationError(
                f"The profile {profile.fingerprint} does not hold here: {why}. Measure one with 'tocom calibrate'."
            )
        return profile
    ignored = []
    for path, found in bundle.profiles.items():
        if isinstance(found, CalibrationError):
            ignored.append(str(found))
            continue
        why = _unfit(found, identity, degrees)
        if why is None:
            if found.device_state is not None and found.device_state.marks:
                marks = "; ".join(found.device_state.marks)
                log.warning("the profile %s is doubtful: %s. Measure it again with 'tocom calibrate'.", path, marks)
            return found
        if found.backend == identity["backend"]:
            ignored.append(f"{path}: {why}")
    # Profiles of other backends, and beside the one that holds those of other devices and modes, are not news.
    for why in ignored:
        log.warning("ignored a profile: %s", why)
    return None


def batch_profiles(bundle: Bundle, backend: Backend, degrees: Sequence[int]) -> dict[int, Profile]:
    """Return the profiles beside a bundle that hold here, for another batch of its range: by their batch."""
    least, optimal, most = bundle.batch
    found = {}
    for profile in bundle.profiles.values():
        if isinstance(profile, CalibrationError):  # reported where the profile in use was looked for
            continue
        identity = identity_of(bundle, backend, profile.batch)
        if least <= profile.batch <= most and profile.batch != optimal and _unfit(profile, identity, degrees) is None:
            found[profile.batch] = profile
    return found


def latency_of(samples_ms: Sequence[float]) -> Latency:
    """Return the quantiles of latency samples (linear interpolation), in milliseconds."""
    p50, p90, p95, p99 = (float(q) for q in np.quantile(np.asarray(samples_ms), (0.5, 0.9, 0.95, 0.99)))
    return Latency(len(samples_ms), p50, p90, p95, p99)


def short_profile(bundle: Bundle, backend: Backend, engines: Mapping[int, Engine], images: NDArray[Any]) -> Profile:
    """Measure a few rounds over all degrees, interleaved; at most about five seconds. Not saved: too few samples."""
    samples: dict[int, list[float]] = {degree: [] for degree in engines}
    begin = time.perf_counter()
    for _ in range(_SHORT_ROUNDS):
        for degree, engine in engines.items():
            start = time.perf_counter()
            engine.run(images)
            samples[degree].append((time.perf_counter() - start) * 1e3)
        if time.perf_counter() - begin > _SHORT_SECONDS:
            break
    return Profile(
        device=backend.device,
        backend=backend.name,
        precision=bundle.precision,
        batch=len(images),
        threads=backend.threads,
        bundle_fingerprint=bundle.fingerprint,
        model=bundle.model_name,
        degrees={degree: DegreeProfile(latency_of(values)) for degree, values in samples.items()},
        interval=INTERVAL,
        measured={
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "tocom": __version__,
            "how": "short measurement at warm-up, interleaved",
        },
    )


def _unfit(profile: Profile, identity: Mapping[str, Any], degrees: Sequence[int]) -> str | None:
    missing = [degree for degree in degrees if degree not in profile.degrees]
    return profile.mismatch(identity) or (f"it lacks the degrees {missing}" if missing else None)

"""Profiles of small bundles that hold on this machine, with the figures that a test wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from small_bundles import SmallBundle

from tocom.formats.measurements import Accuracy, Energy
from tocom.formats.profile import DegreeProfile, Latency, Profile
from tocom.runtime import Runtime
from tocom.runtime.profiles import identity_of


def profile_for(
    runtime: Runtime,
    times_ms: Mapping[int, float],
    accuracy: Mapping[int, float] | None = None,
    *,
    batch: int | None = None,
    millijoules: Mapping[int, float] | None = None,
) -> Profile:
    """Return a profile that holds for a runtime: per degree what an inference takes."""
    identity = identity_of(runtime.bundle, runtime.backend, batch)
    return Profile(
        device=identity["device"],
        backend=identity["backend"],
        precision=identity["precision"],
        batch=identity["batch"],
        threads=identity["threads"],
        bundle_fingerprint=identity["bundle"],
        model=runtime.bundle.model_name,
        degrees={
            degree: DegreeProfile(
                Latency(400, ms, ms, ms, ms),
                None if accuracy is None else Accuracy("top1", accuracy[degree], 1000, 0.0, 1.0),
                energy=None if millijoules is None else Energy(millijoules[degree], 100, "test"),
            )
            for degree, ms in times_ms.items()
        },
        interval="test",
    )


def write_profile(bundle: SmallBundle, times_ms: Mapping[int, float], **options: Any) -> Profile:
    """Write a profile beside a bundle as ``tocom calibrate`` does; the options are those of :func:`profile_for`."""
    with Runtime.open(bundle.path, warm=False) as runtime:
        profile = profile_for(runtime, times_ms, **options)
    profile.save(bundle.path)
    return profile

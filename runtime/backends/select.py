"""Which backend: by name, or ``auto``, with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from tocom.errors import EngineError, RequestError
from tocom.formats.bundle import Bundle
from tocom.formats.profile import Profile
from tocom.runtime.backends.base import Backend
from tocom.system.cpu import cpu_identity, power_mode, usable_cores

__all__ = ["BACKENDS", "ON_GPU", "WITH_ENGINES", "compare_measured", "open_backend"]


def _onnxruntime(bundle: Bundle, threads: int | None, reason: str, *, cuda: bool = False) -> Backend:
    from tocom.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, threads=threads, reason=reason, cuda=cuda)


def _tensorrt(bundle: Bundle, _: int | None, reason: str, *, name: str = "tensorrt") -> Backend:
    from tocom.runtime.backends.tensorrt.backend import TensorRtBackend

    return TensorRtBackend(bundle, name=name, reason=reason)


def _openvino(bundle: Bundle, threads: int | None, reason: str) -> Backend:
    from tocom.runtime.backends.openvino.backend import OpenVinoBackend

    return OpenVinoBackend(bundle, threads=threads, reason=reason)


# In the order in which ``auto`` tries them. OpenVINO stands behind ONNX Runtime, which starts faster, shares weights
# between degrees and comes with tocom[runtime]: it goes first where profiles of both say that it is faster here.
_OPENERS: dict[str, Callable[[Bundle, int | None, str], Backend]] = {
    "tensorrt": _tensorrt,
    "tensorrt-rtx": partial(_tensorrt, name="tensorrt-rtx"),
    "onnxruntime-cuda": partial(_onnxruntime, cuda=True),
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
BACKENDS = tuple(_OPENERS)
# Those whose files were compiled on a device, and may not load on it any more.
WITH_ENGINES = ("tensorrt", "tensorrt-rtx")
ON_GPU = (*WITH_ENGINES, "onnxruntime-cuda")
_ON_CPU = ("onnxruntime", "openvino")


def open_backend(
    name: str, bundle: Bundle, *, threads: int | None = None, refused: Mapping[str, str] | None = None
) -> Backend:
    """Return an opened backend.

    Args:
        name: One of :data:`BACKENDS`, or ``auto``: the first that this machine and this bundle can use; of those on the
            CPU the one that calibration measured as the faster one on this device, where it measured both.
        bundle: The bundle to serve.
        threads: CPU threads of one inference; None takes the usable physical cores.
        refused: Backends that ``auto`` passes over, with the reason: they opened, but their engines did not load.

    Raises:
        RequestError: ``name`` is unknown.
        EngineError: The backend cannot be used here; for ``auto``, none can, and each one's reason is said.
    """
    if name != "auto":
        if name not in _OPENERS:
            raise RequestError(
                f"The 'backend' parameter must be one of auto, {', '.join(BACKENDS)}. Got {name!r} instead."
            )
        return _OPENERS[name](bundle, threads, "asked for")
    known = dict(refused or {})
    passed_over: list[str] = []
    openers, (faster, compared) = dict(_OPENERS), compare_measured(bundle, threads)
    if faster == "openvino":
        openers["onnxruntime"] = openers.pop("onnxruntime")  # behind OpenVINO
    for candidate, opener in openers.items():
        measured = [compared] if candidate in _ON_CPU and compared else []
        reason = " ".join([*measured, *passed_over]) or "first choice"
        try:
            if candidate not in known:
                return opener(bundle, threads, reason)
        except EngineError as error:
            known[candidate] = str(error)
        passed_over.append(f"Not {candidate}: {known[candidate]}")
    raise EngineError(f"No backend can serve {bundle.path} here. {' '.join(passed_over)}")


def compare_measured(bundle: Bundle, threads: int | None = None) -> tuple[str | None, str]:
    """Return which backend on the CPU calibration measured as the faster one on this device, and a sentence on it.

    Latencies are compared in the geometric mean over the degrees. None and no sentence, unless both were measured.

    Args:
        bundle: The bundle.
        threads: Threads of one inference; None takes the usable physical cores.
    """
    here = {**cpu_identity(), **({"power_mode": mode} if (mode := power_mode()) else {})}
    wanted = (bundle.fingerprint, bundle.batch[1], usable_cores() if threads is None else threads)
    known: dict[str, Profile] = {}
    for profile in bundle.profiles.values():
        if not isinstance(profile, Profile):  # reported where a profile is chosen
            continue
        same = (profile.bundle_fingerprint, profile.batch, profile.threads) == wanted
        if same and profile.backend in _ON_CPU and here.items() <= dict(profile.device).items():
            known[profile.backend] = profile
    if len(known) < len(_ON_CPU):
        return None, ""
    mine, theirs = (known[name].degrees for name in _ON_CPU)
    both = mine.keys() & theirs.keys()
    if not both:
        return None, ""
    logs = [math.log(theirs[degree].latency.p50_ms / mine[degree].latency.p50_ms) for degree in both]
    gain = math.exp(sum(logs) / len(logs))
    faster = "openvino" if gain < 1 else "onnxruntime"
    doubtful = any(profile.device_state is not None and profile.device_state.marks for profile in known.values())
    again = " One of them is doubtful: measure both again." if doubtful else ""
    return (
        faster,
        f"OpenVINO took {gain:.2f} of ONNX Runtime's time here, by their profiles: {faster} goes first.{again}",
    )

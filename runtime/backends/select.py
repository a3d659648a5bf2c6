"""Which backend: by name, or ``auto`` with the reason told."""

from __future__ import annotations

from collections.abc import Callable

from tocom.errors import EngineError, RequestError
from tocom.formats.bundle import Bundle
from tocom.runtime.backends.base import Backend

__all__ = ["BACKENDS", "open_backend"]


def _onnxruntime(bundle: Bundle, threads: int | None, reason: str) -> Backend:
    from tocom.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, threads=threads, reason=reason)


def _onnxruntime_cuda(bundle: Bundle, threads: int | None, reason: str) -> Backend:
    from tocom.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, threads=threads, reason=reason, cuda=True)


def _tensorrt(bundle: Bundle, threads: int | None, reason: str) -> Backend:
    from tocom.runtime.backends.tensorrt.backend import TensorRtBackend

    del threads
    return TensorRtBackend(bundle, name="tensorrt", reason=reason)


def _tensorrt_rtx(bundle: Bundle, threads: int | None, reason: str) -> Backend:
    from tocom.runtime.backends.tensorrt.backend import TensorRtBackend

    del threads
    return TensorRtBackend(bundle, name="tensorrt-rtx", reason=reason)


def _openvino(bundle: Bundle, threads: int | None, reason: str) -> Backend:
    from tocom.runtime.backends.openvino.backend import OpenVinoBackend

    return OpenVinoBackend(bundle, threads=threads, reason=reason)


# In the order in which ``auto`` tries them. OpenVINO stands behind ONNX Runtime, which starts faster, shares weights
# between degrees and comes with tocom[runtime]: it is taken when asked for, or where there is no ONNX Runtime.
_OPENERS: dict[str, Callable[[Bundle, int | None, str], Backend]] = {
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
    "onnxruntime-cuda": _onnxruntime_cuda,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
BACKENDS = tuple(_OPENERS)


def open_backend(name: str, bundle: Bundle, *, threads: int | None = None) -> Backend:
    """Return an opened backend.

    Args:
        name: One of :data:`BACKENDS`, or ``auto``: the first that this machine and this bundle can use.
        bundle: The bundle to serve.
        threads: CPU threads of one inference; None takes the usable physical cores.

    Raises:
        RequestError: ``name`` is unknown.
        EngineError: The backend cannot be used here; for ``auto``, none can, and each one's reason is told.
    """
    if name != "auto":
        if name not in _OPENERS:
            raise RequestError(
                f"The 'backend' parameter must be one of auto, {', '.join(BACKENDS)}. Got {name!r} instead."
            )
        return _OPENERS[name](bundle, threads, "asked for")
    refused: list[str] = []
    for candidate, opener in _OPENERS.items():
        reason = " ".join(refused) or "first choice"
        try:
            return opener(bundle, threads, reason)
        except EngineError as error:
            refused.append(f"Not {candidate}: {error}")
    raise EngineError(f"No backend can serve {bundle.path} here. {' '.join(refused)}")

"""ONNX Runtime: runs the bundle's ONNX files as they are, on the CPU or with the CUDA provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from tocom.runtime.identity import cpu_identity, usable_cores

from tocom.bundle import Bundle
from tocom.errors import EngineError

__all__ = ["OnnxRuntimeBackend", "OnnxRuntimeEngine"]


class OnnxRuntimeEngine:
    """One session. ``run`` may be called from any thread, by one thread at a time."""

    def __init__(self, session: Any, degree: int, output_names: tuple[str, ...]) -> None:
        self.degree = degree
        self._names = list(output_names)
        self._run = session.run
        self._input = session.get_inputs()[0].name

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name. ``images`` is read in place, without a copy."""
        try:
            values = self._run(self._names, {self._input: images})
        except Exception as error:  # pybind's exception types are not exported; this is the one boundary to them
            raise EngineError(f"ONNX Runtime failed at degree {self.degree}: {_one_line(error)}") from error
        return dict(zip(self._names, values, strict=True))

    def close(self) -> None:
        """Drop the session."""
        self._run = _closed


class OnnxRuntimeBackend:
    """Sessions of one bundle.

    Args:
        bundle: The bundle.
        threads: CPU threads of one inference; None takes the usable physical cores.
        reason: Why this backend was chosen.
        cuda: Use the CUDA provider, and fail where it is missing.

    Raises:
        EngineError: onnxruntime is not installed, or has no CUDA provider.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None, reason: str = "", cuda: bool = False) -> None:
        try:
            import onnxruntime  # type: ignore[import-untyped]
        except ImportError as error:
            raise EngineError(
                "The onnxruntime backend needs the package onnxruntime. Install it: pip install 'tocom[runtime]'."
            ) from error
        self._ort = onnxruntime
        self._bundle = bundle
        self.name = "onnxruntime-cuda" if cuda else "onnxruntime"
        self.reason = reason
        self.threads = usable_cores() if threads is None else threads
        self.device: Mapping[str, str] = {**cpu_identity(), "onnxruntime": onnxruntime.__version__}
        self._providers = ["CPUExecutionProvider"]
        if cuda:
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise EngineError(
                    "this onnxruntime has no CUDA provider. Install it: pip install onnxruntime-gpu, in place of "
                    "onnxruntime."
                )
            self._providers.insert(0, "CUDAExecutionProvider")

    def load(self, degree: int) -> OnnxRuntimeEngine:
        """Open a session for a degree."""
        path = self._bundle.onnx_path(degree)
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = self._ort.InferenceSession(str(path), options, providers=self._providers)
        except Exception as error:  # see OnnxRuntimeEngine.run
            if "bad_alloc" in str(error) or "Failed to allocate" in str(error):
                raise MemoryError(f"degree {degree} does not fit: {_one_line(error)}") from error
            raise EngineError(
                f"ONNX Runtime {self._ort.__version__} cannot load {path}: {_one_line(error)} "
                "Check the bundle with 'tocom inspect', or export it anew."
            ) from error
        if self.name == "onnxruntime-cuda" and "CUDAExecutionProvider" not in session.get_providers():
            raise EngineError("the CUDA provider is installed but does not start here. See 'tocom doctor'.")
        return OnnxRuntimeEngine(session, degree, self._bundle.output_names)

    def close(self) -> None:
        """Sessions hold everything; nothing to release."""


def _closed(*_: Any) -> Any:
    raise EngineError("the engine is closed")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]

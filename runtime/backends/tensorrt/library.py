"""Importing TensorRT or TensorRT-RTX, and turning its log into errors."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import re
from collections import deque
from types import ModuleType
from typing import Any

from tocom.errors import EngineError
from tocom.system.dependencies import package_folders

__all__ = ["LogCapture", "UnsupportedGpuError", "import_tensorrt"]

log = logging.getLogger("tocom.runtime.tensorrt")

_RTX_LIBRARIES = ("libcudart.so.13", "libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1")
_INSTALL = {
    "tensorrt": "Install TensorRT (JetPack has it; elsewhere: pip install 'tocom[tensorrt]')",
    "tensorrt-rtx": "Install it: pip install 'tocom[rtx]'",
}


def import_tensorrt(name: str) -> ModuleType:
    """Return the Python module of a backend.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        EngineError: It is not installed, or cannot be imported.
    """
    modules = ("tensorrt",) if name == "tensorrt" else ("tensorrt_rtx", "tensorrt_rtx_bindings")
    for module in modules:
        spec = importlib.util.find_spec(module)
        # A folder of type stubs alone is found as a package without a file.
        if spec is None or spec.origin is None:
            continue
        try:
            if module == "tensorrt_rtx_bindings":
                _load_rtx_libraries()
            return importlib.import_module(module)
        except (ImportError, OSError) as error:
            raise EngineError(
                f"The module {module} is installed but does not start: {error}. {_INSTALL[name]}."
            ) from error
    raise EngineError(f"{name} is not installed for this Python. {_INSTALL[name]}.")


def _load_rtx_libraries() -> None:
    """Load the libraries of the wheel of ONNX Runtime's provider: the bindings look their symbols up globally."""
    folders = package_folders("onnxruntime_ep_nv_tensorrt_rtx")
    for library in _RTX_LIBRARIES:
        found = next((path for folder in folders for path in folder.rglob(f"{library}*")), None)
        ctypes.CDLL(str(found) if found is not None else library, mode=ctypes.RTLD_GLOBAL)


class UnsupportedGpuError(EngineError):
    """Raised when the library runs no engine at all on this GPU, however it is built."""


class LogCapture:
    """Keeps TensorRT's last warnings and errors: it returns None and logs where others raise."""

    def __init__(self, trt: Any) -> None:
        self._lines: deque[str] = deque(maxlen=8)
        lines = self._lines
        worst = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR, trt.ILogger.Severity.WARNING)

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in worst:
                    lines.append(" ".join(message.split()))
                log.debug("%s", message)

        self.logger = Logger()

    def refusal(self, what: str, cure: str = "") -> Exception:
        """Return the error of what TensorRT refused: a MemoryError where it logged a lack of memory."""
        lines = self.take()
        if "out of memory" in lines.lower():
            return MemoryError(f"{what}: {lines}")
        if _UNSUPPORTED in lines:
            return UnsupportedGpuError(f"{what}: {lines}. Serve with another backend: TensorRT, or ONNX Runtime.")
        return EngineError(f"{what}: {lines}. {cure}".rstrip())

    def take(self) -> str:
        """Return what was logged since the last call, as one line, and forget it."""
        text = "; ".join(self._lines)[:600]
        self._lines.clear()
        if _OLD_DRIVER.search(text):
            text += ". The NVIDIA driver is older than the CUDA that this library was made for: update the driver, or "
            text += "install the library of this JetPack"
        return text or "it logged nothing"


# What TensorRT-RTX 1.7.1 logs on an H200, compute capability 9.0: it is made for GeForce and RTX cards.
_UNSUPPORTED = "does not support this compute capability"
# cudaErrorInsufficientDriver, as TensorRT and TensorRT-RTX log it.
_OLD_DRIVER = re.compile(r"\b(?:cudaError|error:?) 35\b|driver version is insufficient", re.IGNORECASE)

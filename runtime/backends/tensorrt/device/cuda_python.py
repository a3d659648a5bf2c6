"""The device through NVIDIA's ``cuda-python`` (``cuda.bindings.driver``)."""

from __future__ import annotations

import importlib
from typing import Any

from tocom.errors import EngineError
from tocom.runtime.backends.tensorrt.device.driver_api import DriverDevice
from tocom.runtime.backends.tensorrt.device.failures import gone, not_usable

__all__ = ["CudaPythonDevice"]


class CudaPythonDevice(DriverDevice):
    """One GPU through cuda-python. Its major version must be the driver's: 12.6 on JetPack 6.

    Args:
        index: Which GPU.

    Raises:
        EngineError: cuda-python is not installed, does not fit the driver, or shows no such GPU.
    """

    library = "cuda-python"

    def __init__(self, index: int = 0) -> None:
        try:
            self._driver: Any = importlib.import_module("cuda.bindings.driver")
        except ImportError as error:
            raise EngineError(
                f"cuda-python cannot be imported ({error}). Install it: pip install 'tocom[cuda]'."
            ) from error
        super().__init__(index)

    def invoke(self, name: str, *arguments: Any) -> tuple[int, Any]:
        """Call a function of the module."""
        if name == "cuDeviceGetAttribute":
            arguments = (self._driver.CUdevice_attribute(arguments[0]), *arguments[1:])
        elif name == "cuStreamBeginCapture":
            arguments = (arguments[0], self._driver.CUstreamCaptureMode(arguments[1]))
        try:
            status, *values = getattr(self._driver, name)(*arguments)
        except RuntimeError as error:  # what the bindings raise when the driver, or a function of it, is missing
            raise not_usable(gone("cuda-python", f"{name} ({error})")) from error
        return int(status), values[0] if len(values) == 1 else tuple(values)

    def name(self) -> str:
        """Return the GPU's name."""
        text: bytes = self.call("cuDeviceGetName", 256, self._gpu)
        return text.split(b"\0")[0].decode(errors="replace")

    def words(self, code: int) -> str:
        """Return what the driver says of a CUresult."""
        try:
            status, text = self._driver.cuGetErrorString(self._driver.CUresult(code))
        except ValueError:
            return "an error that this cuda-python does not know"
        return text.decode(errors="replace") if int(status) == 0 else str(code)

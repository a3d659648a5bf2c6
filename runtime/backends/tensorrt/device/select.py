"""Which library calls CUDA: the driver's own, which every machine with a GPU has, unless another one is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable

from tocom.errors import EngineError
from tocom.runtime.backends.tensorrt.device.cuda_python import CudaPythonDevice
from tocom.runtime.backends.tensorrt.device.driver_api import DriverDevice
from tocom.runtime.backends.tensorrt.device.libcuda import LibcudaDevice
from tocom.runtime.backends.tensorrt.device.pycuda import PycudaDevice

__all__ = ["LIBRARIES", "LIBRARY_VARIABLE", "Device", "open_device"]

Device = DriverDevice | PycudaDevice

LIBRARY_VARIABLE = "TOCOM_CUDA_LIBRARY"

LIBRARIES: dict[str, Callable[[int], Device]] = {
    "libcuda": LibcudaDevice,
    "pycuda": PycudaDevice,
    "cuda-python": CudaPythonDevice,
}


def open_device(index: int = 0) -> Device:
    """Return the GPU, through the library that ``$TOCOM_CUDA_LIBRARY`` names; by default the driver's own.

    Raises:
        EngineError: There is no GPU, the library cannot use it, or the variable names none.
    """
    name = os.environ.get(LIBRARY_VARIABLE) or "libcuda"
    if name not in LIBRARIES:
        raise EngineError(
            f"The variable {LIBRARY_VARIABLE} must be one of {', '.join(LIBRARIES)}. Got {name!r} instead."
        )
    return LIBRARIES[name](index)

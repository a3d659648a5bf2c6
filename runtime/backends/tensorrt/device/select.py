"""Which device library: the one installed; on a tie cuda-python, which captures graphs."""

from __future__ import annotations

from collections.abc import Callable

from tocom.errors import EngineError
from tocom.runtime.backends.tensorrt.device.base import Device
from tocom.runtime.backends.tensorrt.device.cuda_python import CudaPythonDevice
from tocom.runtime.backends.tensorrt.device.pycuda import PycudaDevice

__all__ = ["open_device"]


def open_device(index: int = 0) -> Device:
    """Return the GPU.

    Raises:
        EngineError: Neither library is installed, or there is no GPU; each one's reason is told.
    """
    openers: tuple[Callable[[int], Device], ...] = (CudaPythonDevice, PycudaDevice)
    refused = []
    for opener in openers:
        try:
            return opener(index)
        except EngineError as error:
            refused.append(str(error))
    raise EngineError(f"No GPU can be used here. {' '.join(refused)}")

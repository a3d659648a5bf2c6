"""The device through ``libcuda.so.1``, the driver itself, called with ctypes: no package, so no version of one."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

from tocom.runtime.backends.tensorrt.device.driver_api import DriverDevice
from tocom.runtime.backends.tensorrt.device.failures import gone, no_driver

__all__ = ["FUNCTIONS", "LibcudaDevice"]

_POINTER = c_uint64  # CUdeviceptr_v2
_HANDLE = c_void_p  # CUcontext, CUstream, CUevent, CUgraph, CUgraphExec

# Name in cuda.h, the symbol that its macros make of it, and the parameters in the header's order. What the driver
# writes is a POINTER.
FUNCTIONS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "cuInit": ("cuInit", (c_uint,)),
    "cuDriverGetVersion": ("cuDriverGetVersion", (POINTER(c_int),)),
    "cuGetErrorString": ("cuGetErrorString", (c_int, POINTER(c_char_p))),
    "cuDeviceGetCount": ("cuDeviceGetCount", (POINTER(c_int),)),
    "cuDeviceGet": ("cuDeviceGet", (POINTER(c_int), c_int)),
    "cuDeviceGetName": ("cuDeviceGetName", (c_char_p, c_int, c_int)),
    "cuDeviceGetAttribute": ("cuDeviceGetAttribute", (POINTER(c_int), c_int, c_int)),
    "cuDevicePrimaryCtxRetain": ("cuDevicePrimaryCtxRetain", (POINTER(_HANDLE), c_int)),
    "cuDevicePrimaryCtxRelease": ("cuDevicePrimaryCtxRelease_v2", (c_int,)),
    "cuCtxPushCurrent": ("cuCtxPushCurrent_v2", (_HANDLE,)),
    "cuCtxPopCurrent": ("cuCtxPopCurrent_v2", (POINTER(_HANDLE),)),
    "cuMemGetInfo": ("cuMemGetInfo_v2", (POINTER(c_size_t), POINTER(c_size_t))),
    "cuMemAlloc": ("cuMemAlloc_v2", (POINTER(_POINTER), c_size_t)),
    "cuMemFree": ("cuMemFree_v2", (_POINTER,)),
    "cuMemHostAlloc": ("cuMemHostAlloc", (POINTER(c_void_p), c_size_t, c_uint)),
    "cuMemFreeHost": ("cuMemFreeHost", (c_void_p,)),
    "cuMemcpyHtoDAsync": ("cuMemcpyHtoDAsync_v2", (_POINTER, c_void_p, c_size_t, _HANDLE)),
    "cuMemcpyDtoHAsync": ("cuMemcpyDtoHAsync_v2", (c_void_p, _POINTER, c_size_t, _HANDLE)),
    "cuMemcpyDtoDAsync": ("cuMemcpyDtoDAsync_v2", (_POINTER, _POINTER, c_size_t, _HANDLE)),
    "cuStreamCreate": ("cuStreamCreate", (POINTER(_HANDLE), c_uint)),
    "cuStreamDestroy": ("cuStreamDestroy_v2", (_HANDLE,)),
    "cuStreamSynchronize": ("cuStreamSynchronize", (_HANDLE,)),
    "cuStreamWaitEvent": ("cuStreamWaitEvent", (_HANDLE, _HANDLE, c_uint)),
    "cuEventCreate": ("cuEventCreate", (POINTER(_HANDLE), c_uint)),
    "cuEventRecord": ("cuEventRecord", (_HANDLE, _HANDLE)),
    "cuEventDestroy": ("cuEventDestroy_v2", (_HANDLE,)),
    "cuStreamBeginCapture": ("cuStreamBeginCapture_v2", (_HANDLE, c_int)),
    "cuStreamEndCapture": ("cuStreamEndCapture", (_HANDLE, POINTER(_HANDLE))),
    "cuGraphInstantiate": ("cuGraphInstantiateWithFlags", (POINTER(_HANDLE), _HANDLE, c_ulonglong)),
    "cuGraphLaunch": ("cuGraphLaunch", (_HANDLE, _HANDLE)),
    "cuGraphDestroy": ("cuGraphDestroy", (_HANDLE,)),
    "cuGraphExecDestroy": ("cuGraphExecDestroy", (_HANDLE,)),
}


class LibcudaDevice(DriverDevice):
    """One GPU through the driver's own library.

    Args:
        index: Which GPU.
        path: The library; as the dynamic loader finds it unless given.

    Raises:
        EngineError: There is no driver, it is too old, or it shows no such GPU.
    """

    library = "libcuda"

    def __init__(self, index: int = 0, path: str = "libcuda.so.1") -> None:
        try:
            driver = ctypes.CDLL(path)
        except OSError as error:
            raise no_driver(error) from error
        self._functions = {}
        for name, (symbol, types) in FUNCTIONS.items():
            try:
                function = driver[symbol]
            except AttributeError as error:
                raise gone("the runtime", symbol) from error
            function.argtypes, function.restype = types, c_int
            # A POINTER is made of a type, which byref() fills.
            written = [getattr(kind, "_type_", None) if issubclass(kind, ctypes._Pointer) else None for kind in types]
            self._functions[name] = (function, written)
        super().__init__(index)

    def invoke(self, name: str, *arguments: Any) -> tuple[int, Any]:
        """Call a function; what it writes is added to the arguments, and returned."""
        function, written = self._functions[name]
        if not any(written):
            return function(*arguments), None
        given, results, passed = iter(arguments), [], []
        for kind in written:
            if kind is None:
                passed.append(next(given))
            else:
                results.append(kind())
                passed.append(ctypes.byref(results[-1]))
        code = function(*passed)
        # A null handle reads as None; streams are integers.
        values = [result.value or 0 for result in results]
        return code, values[0] if len(values) == 1 else tuple(values)

    def name(self) -> str:
        """Return the GPU's name."""
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, len(text), self._gpu)
        return text.value.decode(errors="replace")

    def words(self, code: int) -> str:
        """Return what the driver says of a CUresult."""
        status, text = self.invoke("cuGetErrorString", code)
        return text.decode(errors="replace") if status == 0 and text else "an error that this driver does not know"

"""``pycuda.driver`` over a :class:`~host_cuda.HostCuda`: its names, arguments and types, and no others.

Written from pycuda's src/wrapper/wrap_cudadrv.cpp and src/cpp/cuda.hpp; ``pycuda_names.json`` lists what these have,
and a test holds this module to the list. Boost.Python refuses arguments of other types with a TypeError, so does this.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
from host_cuda import HostCuda

from tocom.runtime.backends.tensorrt.device.libcuda import FUNCTIONS


class Error(Exception):
    pass


class MemoryError(Error):
    pass


class LogicError(Error):
    pass


class RuntimeError(Error):
    pass


def require(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"Python argument types did not match the C++ signature: {type(value).__name__}")
    return value


def scripted_pycuda(cuda: HostCuda) -> SimpleNamespace:
    """Return what stands where the module stands."""
    library = ctypes.CDLL(cuda.path)

    def call(name: str, *arguments: Any) -> Any:
        symbol, types = {**FUNCTIONS, **_MORE}[name]
        passed = (kind(value) if kind in _PLAIN else value for kind, value in zip(types, arguments, strict=True))
        code = library[symbol](*passed)
        if code:
            text = ctypes.c_char_p()
            library.cuGetErrorString(code, ctypes.byref(text))
            # translate_cuda_error() of the wrapper.
            kind = {2: MemoryError, 100: RuntimeError, 999: Error}.get(code, LogicError)
            raise kind(f"{name} failed: {(text.value or b'unknown').decode()}")

    def asked(name: str, kind: Any, *after: Any, count: int = 1) -> Any:
        values = [kind() for _ in range(count)]
        call(name, *map(ctypes.byref, values), *after)
        return values[0].value if count == 1 else tuple(value.value for value in values)

    class Device:
        def __init__(self, index: int) -> None:
            self._index = asked("cuDeviceGet", ctypes.c_int, require(index, int))

        @staticmethod
        def count() -> int:
            return int(asked("cuDeviceGetCount", ctypes.c_int))

        def name(self) -> str:
            text = ctypes.create_string_buffer(1024)
            call("cuDeviceGetName", text, 1024, self._index)
            return text.value.decode()

        def compute_capability(self) -> tuple[int, int]:
            major, minor = (asked("cuDeviceGetAttribute", ctypes.c_int, ask, self._index) for ask in (75, 76))
            return major, minor

        def retain_primary_context(self) -> Context:
            context = object.__new__(Context)
            context._handle = asked("cuDevicePrimaryCtxRetain", ctypes.c_void_p, self._index)
            return context

    class Context:
        _handle: int

        def __init__(self) -> None:
            raise RuntimeError("This class cannot be instantiated from Python")

        def push(self) -> None:
            call("cuCtxPushCurrent", self._handle)

        def detach(self) -> None:
            # Where the context is not current, pycuda pushes it first, and nothing pops a primary one. What fails here
            # is printed and no more.
            library.cuCtxPushCurrent_v2(ctypes.c_void_p(self._handle))
            library.cuDevicePrimaryCtxRelease_v2(0)

        @staticmethod
        def pop() -> None:
            asked("cuCtxPopCurrent", ctypes.c_void_p)

        @staticmethod
        def synchronize() -> None:
            call("cuCtxSynchronize")

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            self.handle = asked("cuStreamCreate", ctypes.c_void_p, require(flags, int))
            self._context = asked("cuCtxGetCurrent", ctypes.c_void_p)

        def synchronize(self) -> None:
            call("cuStreamSynchronize", self.handle)

        def __del__(self) -> None:
            if hasattr(self, "handle"):
                # scoped_context_activation and CUDAPP_CALL_GUARDED_CLEANUP: in its context; a failure is only printed.
                library.cuCtxPushCurrent_v2(ctypes.c_void_p(self._context))
                library.cuStreamDestroy_v2(ctypes.c_void_p(self.handle))
                library.cuCtxPopCurrent_v2(None)

    class DeviceAllocation:
        def __init__(self) -> None:
            raise RuntimeError("This class cannot be instantiated from Python")

        def __int__(self) -> int:
            return self._pointer

        def __index__(self) -> int:
            return self._pointer

        def free(self) -> None:
            call("cuMemFree", self._pointer)

        _pointer: int

    class PagelockedHostAllocation:
        def __init__(self) -> None:
            raise RuntimeError("This class cannot be instantiated from Python")

        def free(self) -> None:
            call("cuMemFreeHost", self._pointer)

        _pointer: int
        __array_interface__: dict[str, Any]

    def init(flags: int = 0) -> None:
        call("cuInit", flags)

    def get_driver_version() -> int:
        return int(asked("cuDriverGetVersion", ctypes.c_int))

    def mem_get_info() -> tuple[int, int]:
        free, total = asked("cuMemGetInfo", ctypes.c_size_t, count=2)
        return free, total

    def mem_alloc(size: int) -> DeviceAllocation:
        memory = object.__new__(DeviceAllocation)
        memory._pointer = asked("cuMemAlloc", ctypes.c_uint64, require(size, int))
        return memory

    def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        memory = object.__new__(PagelockedHostAllocation)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pointer = memory._pointer = asked("cuMemHostAlloc", ctypes.c_void_p, size, mem_flags)
        kind = np.dtype(dtype).str
        memory.__array_interface__ = {"shape": shape, "typestr": kind, "data": (pointer, False), "version": 3}
        return np.asarray(memory)

    def handle(stream: Any) -> Any:
        return None if stream is None else require(stream, Stream).handle

    def memcpy_htod_async(dest: Any, src: Any, stream: Any = None) -> None:
        view = np.frombuffer(src, np.uint8)
        pointer = int(require(dest, int, DeviceAllocation))
        call("cuMemcpyHtoDAsync", pointer, view.ctypes.data, view.nbytes, handle(stream))

    def memcpy_dtoh_async(dest: Any, src: Any, stream: Any = None) -> None:
        view = np.frombuffer(dest, np.uint8)
        pointer = int(require(src, int, DeviceAllocation))
        call("cuMemcpyDtoHAsync", view.ctypes.data, pointer, view.nbytes, handle(stream))

    def memcpy_dtod_async(dest: Any, src: Any, size: int, stream: Any = None) -> None:
        pointers = (int(require(pointer, int, DeviceAllocation)) for pointer in (dest, src))
        call("cuMemcpyDtoDAsync", *pointers, require(size, int), handle(stream))

    offered = {name: value for name, value in locals().items() if name not in _PRIVATE}
    return SimpleNamespace(
        **offered, Error=Error, MemoryError=MemoryError, LogicError=LogicError, RuntimeError=RuntimeError
    )


_MORE = {
    "cuCtxSynchronize": ("cuCtxSynchronize", ()),
    "cuCtxGetCurrent": ("cuCtxGetCurrent", (ctypes.POINTER(ctypes.c_void_p),)),
}
_PLAIN = (ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_void_p)
_PRIVATE = ("cuda", "library", "call", "asked", "handle")

"""The device over the CUDA driver API, for every library that offers its functions by their own names.

Functions and constants are those of ``cuda.h``; all of them are in CUDA 12.6, which JetPack 6 has.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.runtime.backends.tensorrt.device.failures import check_gpu, failed, refused, version_text

__all__ = ["NON_BLOCKING", "OUT_OF_MEMORY", "DriverDevice"]

# Of cuda.h: CUDA_ERROR_OUT_OF_MEMORY, CU_STREAM_NON_BLOCKING.
OUT_OF_MEMORY, NON_BLOCKING = 2, 1
_COMPUTE_CAPABILITY = (75, 76)
_DISABLE_TIMING = 2
_THREAD_LOCAL = 1


class DriverDevice:
    """One GPU, in its primary context, which it shares with the other libraries of the process.

    Pointers and streams are integers; ``pinned`` memory is a byte array. Calls about memory, streams and graphs are
    made inside :meth:`attached`. Every failing call raises EngineError, naming the call and CUDA's own words; a lack of
    memory is a MemoryError. All devices pass one contract test suite.

    Args:
        index: Which GPU.

    Attributes:
        library: ``libcuda``, ``pycuda`` or ``cuda-python``.
        captures: CUDA graphs can be captured.

    Raises:
        EngineError: There is no such GPU, or the driver is too old or refuses.
    """

    library: str
    captures = True

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self._opened = False
        self._streams: set[int] = set()
        try:
            self.call("cuInit", 0)
            self._version = int(self.call("cuDriverGetVersion"))
            check_gpu(index, int(self.call("cuDeviceGetCount")), self._version)
            self._gpu = self.call("cuDeviceGet", index)
            self._context = self.call("cuDevicePrimaryCtxRetain", self._gpu)
            self._opened = True
            with self.attached():
                self._event = self.call("cuEventCreate", _DISABLE_TIMING)
        except BaseException:
            if self._opened:
                self.call("cuDevicePrimaryCtxRelease", self._gpu)
            raise

    def invoke(self, name: str, *arguments: Any) -> tuple[int, Any]:
        """Return a function's CUresult and what it gave; by the subclass."""
        raise NotImplementedError

    def name(self) -> str:
        """Return the GPU's name; by the subclass."""
        raise NotImplementedError

    def words(self, code: int) -> str:
        """Return what CUDA says of a CUresult; by the subclass."""
        raise NotImplementedError

    def call(self, name: str, *arguments: Any) -> Any:
        """Return what a function of the driver gave; raise what it refused."""
        code, value = self.invoke(name, *arguments)
        if code == 0:
            return value
        what = f"{name} failed: {self.words(code)} (CUDA error {code})"
        raise failed(what, code == OUT_OF_MEMORY) if self._opened or code == OUT_OF_MEMORY else refused(what)

    def describe(self) -> Mapping[str, str]:
        """Return name, compute capability and driver version."""
        major, minor = (int(self.call("cuDeviceGetAttribute", ask, self._gpu)) for ask in _COMPUTE_CAPABILITY)
        return {
            "gpu": self.name(),
            "compute_capability": f"{major}.{minor}",
            "driver": version_text(self._version),
        }

    def memory(self) -> tuple[int, int]:
        """Return the free and the total memory, bytes."""
        with self.attached():
            free, total = self.call("cuMemGetInfo")
        return int(free), int(total)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Make the GPU current on this thread for the block: push its context, pop it after."""
        self.call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent")

    def allocate(self, size: int) -> int:
        """Return a pointer to ``size`` bytes of device memory, aligned to 256 bytes."""
        return int(self.call("cuMemAlloc", max(size, 1)))

    def release(self, pointer: int) -> None:
        """Give device memory back."""
        self.call("cuMemFree", pointer)

    def pinned(self, size: int) -> NDArray[Any]:
        """Return ``size`` bytes of page-locked host memory as a uint8 array."""
        pointer = int(self.call("cuMemHostAlloc", max(size, 1), 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))

    def release_pinned(self, array: NDArray[Any]) -> None:
        """Give page-locked memory back; the array must not be used afterwards."""
        self.call("cuMemFreeHost", array.ctypes.data)

    def create_stream(self) -> int:
        """Return a new stream that does not wait for the default stream."""
        stream = int(self.call("cuStreamCreate", NON_BLOCKING))
        self._streams.add(stream)
        return stream

    def release_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._streams.discard(stream)
        self.call("cuStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        self.call("cuStreamSynchronize", stream)

    def wait_for(self, stream: int, producer: int) -> None:
        """Make a stream wait, on the device, for what another one was given until now."""
        self.call("cuEventRecord", self._event, producer)
        self.call("cuStreamWaitEvent", stream, self._event, 0)

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy page-locked memory, from the start of one of our blocks, to device memory, in stream order."""
        self.call("cuMemcpyHtoDAsync", target, source, size, stream)

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy device memory to page-locked memory, to the start of one of our blocks, in stream order."""
        self.call("cuMemcpyDtoHAsync", target, source, size, stream)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy within device memory, in stream order."""
        self.call("cuMemcpyDtoDAsync", target, source, size, stream)

    def begin_capture(self, stream: int) -> None:
        """Record what the stream is given from now on, not run it; other threads' calls are not disturbed."""
        self.call("cuStreamBeginCapture", stream, _THREAD_LOCAL)

    def end_capture(self, stream: int) -> Any:
        """Return the recorded graph, ready to launch. The stream records no longer, also when this raises."""
        graph = self.call("cuStreamEndCapture", stream)
        try:
            return self.call("cuGraphInstantiate", graph, 0)
        finally:
            self.call("cuGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        """Run a graph."""
        self.call("cuGraphLaunch", graph, stream)

    def release_graph(self, graph: Any) -> None:
        """Destroy a graph."""
        self.call("cuGraphExecDestroy", graph)

    def close(self) -> None:
        """Destroy the streams that are left, and give the primary context back. More than once is fine."""
        if not self._opened:
            return
        try:
            with self.attached():
                for stream in sorted(self._streams):
                    self.release_stream(stream)
                self.call("cuEventDestroy", self._event)
        finally:
            self._opened = False
            self.call("cuDevicePrimaryCtxRelease", self._gpu)

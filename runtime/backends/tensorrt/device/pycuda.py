"""The device through ``pycuda`` (the CUDA driver API), the habit on JetPack. It captures no graphs."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import EngineError
from tocom.runtime.backends.tensorrt.device.driver_api import NON_BLOCKING
from tocom.runtime.backends.tensorrt.device.failures import check_gpu, failed, not_usable, refused, version_text

__all__ = ["PycudaDevice"]

_NO_GRAPHS = "pycuda captures no CUDA graphs; leave it uninstalled and the runtime takes the driver's own library."


class PycudaDevice:
    """One GPU through ``pycuda.driver``: a :class:`DriverDevice` without graphs, call by call.

    Args:
        index: Which GPU.

    Raises:
        EngineError: pycuda is not installed, or shows no such GPU.
    """

    library = "pycuda"
    captures = False

    def __init__(self, index: int = 0) -> None:
        try:
            self._driver: Any = importlib.import_module("pycuda.driver")
        except ImportError as error:
            missing = EngineError(f"pycuda cannot be imported ({error}). Install it: pip install 'tocom[pycuda]'.")
            # It links to the driver, so that without one it is there and cannot be imported.
            raise missing if isinstance(error, ModuleNotFoundError) else not_usable(missing) from error
        self.index = index
        self._memory: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}
        self._opened = False
        with self._translated():
            self._driver.init()
            self._version = int(self._driver.get_driver_version())
            check_gpu(index, self._driver.Device.count(), self._version)
            self._gpu = self._driver.Device(index)
            self._context = _primary_context(self._driver, index)
        self._opened = True

    def describe(self) -> Mapping[str, str]:
        """Return name, compute capability and driver version."""
        with self._translated():
            major, minor = self._gpu.compute_capability()
            return {
                "gpu": self._gpu.name(),
                "compute_capability": f"{major}.{minor}",
                "driver": version_text(self._version),
            }

    def memory(self) -> tuple[int, int]:
        """Return the free and the total memory, bytes."""
        with self._translated(), self.attached():
            free, total = self._driver.mem_get_info()
            return int(free), int(total)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Push the context on this thread, pop it after."""
        with self._translated():
            self._context.push()
        try:
            yield
        finally:
            with self._translated():
                self._driver.Context.pop()

    def allocate(self, size: int) -> int:
        """Return a pointer to device memory."""
        with self._translated():
            memory = self._driver.mem_alloc(max(size, 1))
        self._memory[int(memory)] = memory
        return int(memory)

    def release(self, pointer: int) -> None:
        """Give device memory back."""
        with self._translated():
            self._memory.pop(pointer).free()

    def pinned(self, size: int) -> NDArray[Any]:
        """Return page-locked host memory."""
        with self._translated():
            array: NDArray[Any] = self._driver.pagelocked_empty(size, np.uint8)
        self._pinned[array.ctypes.data] = array
        return array

    def release_pinned(self, array: NDArray[Any]) -> None:
        """Give page-locked memory back."""
        with self._translated():
            self._pinned.pop(array.ctypes.data).base.free()

    def create_stream(self) -> int:
        """Return a new stream."""
        with self._translated():
            stream = self._driver.Stream(NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def release_stream(self, stream: int) -> None:
        """Destroy a stream."""
        del self._streams[stream]

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        with self._translated():
            self._streams[stream].synchronize()

    def wait_for(self, stream: int, producer: int) -> None:
        """Wait for everything: pycuda cannot name a stream that it did not make."""
        with self._translated():
            self._driver.Context.synchronize()

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy page-locked memory to device memory."""
        with self._translated():
            self._driver.memcpy_htod_async(target, self._pinned[source][:size], self._streams[stream])

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy device memory to page-locked memory."""
        with self._translated():
            self._driver.memcpy_dtoh_async(self._pinned[target][:size], source, self._streams[stream])

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy device memory to device memory."""
        with self._translated():
            self._driver.memcpy_dtod_async(target, source, size, self._streams[stream])

    def begin_capture(self, *_: Any) -> Any:
        """Not available, as all about graphs."""
        raise EngineError(_NO_GRAPHS)

    end_capture = launch = release_graph = begin_capture

    def close(self) -> None:
        """Release what is left."""
        if not self._opened:
            return
        self._opened = False
        with self.attached():
            for held in (self._streams, self._memory, self._pinned):
                held.clear()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            # Its words are "cuMemAlloc failed: out of memory": the function and CUDA's own.
            out_of_memory = isinstance(error, self._driver.MemoryError)
            raise failed(str(error), out_of_memory) if self._opened or out_of_memory else refused(str(error)) from error


@functools.cache
def _primary_context(driver: Any, index: int) -> Any:
    """Return a GPU's primary context, kept until the process ends: ``detach`` leaves it pushed on its thread.

    Without ``detach`` pycuda's destructor would take it for a context of the other kind.
    """
    context = driver.Device(index).retain_primary_context()
    atexit.register(context.detach)
    return context

"""The device through ``pycuda`` (the CUDA driver API), JetPack's habit. It captures no graphs."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import EngineError

__all__ = ["PycudaDevice"]


class PycudaDevice:
    """One GPU through ``pycuda.driver``, in its primary context so that other libraries of the process share it.

    Args:
        index: Which GPU.
        driver: The module; given by tests, imported otherwise.

    Raises:
        EngineError: pycuda is not installed, or shows no such GPU.
    """

    library = "pycuda"
    captures = False

    def __init__(self, index: int = 0, driver: Any = None) -> None:
        if driver is None:
            try:
                driver = importlib.import_module("pycuda.driver")
            except ImportError as error:
                raise EngineError("pycuda is not installed. Install it: pip install 'tocom[pycuda]'.") from error
        self._driver = driver
        self._memory: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}
        self._closed = False
        with self._translated("init"):
            driver.init()
            count = driver.Device.count()
        if index >= count:
            raise EngineError(f"This machine shows {count} GPUs, number {index} was asked for.")
        with self._translated("retain_primary_context"):
            self._gpu = driver.Device(index)
            self._context = self._gpu.retain_primary_context()

    def describe(self) -> Mapping[str, str]:
        """Return name, compute capability and driver version."""
        major, minor = self._gpu.compute_capability()
        version = self._driver.get_driver_version()
        return {
            "gpu": self._gpu.name(),
            "compute_capability": f"{major}.{minor}",
            "driver": f"{version // 1000}.{version % 1000 // 10}",
        }

    def memory(self) -> tuple[int, int]:
        """Return the free and the total memory, bytes."""
        with self._translated("mem_get_info"), self.attached():
            free, total = self._driver.mem_get_info()
            return int(free), int(total)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Push the context on this thread, pop it after."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def allocate(self, size: int) -> int:
        """Return a pointer to device memory."""
        with self._translated("mem_alloc"), self.attached():
            memory = self._driver.mem_alloc(max(size, 1))
        self._memory[int(memory)] = memory
        return int(memory)

    def release(self, pointer: int) -> None:
        """Give device memory back."""
        with self._translated("mem_free"), self.attached():
            self._memory.pop(pointer).free()

    def pinned(self, size: int) -> NDArray[Any]:
        """Return page-locked host memory."""
        with self._translated("pagelocked_empty"), self.attached():
            array: NDArray[Any] = self._driver.pagelocked_empty(size, np.uint8)
        self._pinned[array.ctypes.data] = array
        return array

    def release_pinned(self, array: NDArray[Any]) -> None:
        """Give page-locked memory back."""
        with self._translated("free_host"), self.attached():
            self._pinned.pop(array.ctypes.data).base.free()

    def create_stream(self) -> int:
        """Return a new stream."""
        with self._translated("Stream"), self.attached():
            stream = self._driver.Stream(self._driver.stream_flags.NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def release_stream(self, stream: int) -> None:
        """Destroy a stream."""
        with self.attached():
            del self._streams[stream]

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        with self._translated("Stream.synchronize"), self.attached():
            self._streams[stream].synchronize()

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy page-locked memory to device memory."""
        with self._translated("memcpy_htod_async"), self.attached():
            self._driver.memcpy_htod_async(target, self._pinned[source][:size], self._streams[stream])

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy device memory to page-locked memory."""
        with self._translated("memcpy_dtoh_async"), self.attached():
            self._driver.memcpy_dtoh_async(self._pinned[target][:size], source, self._streams[stream])

    def begin_capture(self, stream: int) -> None:
        """Not available."""
        raise EngineError("pycuda captures no CUDA graphs; install cuda-python for them.")

    def end_capture(self, stream: int) -> Any:
        """Not available."""
        raise EngineError("pycuda captures no CUDA graphs; install cuda-python for them.")

    def launch(self, graph: Any, stream: int) -> None:
        """Not available."""
        raise EngineError("pycuda captures no CUDA graphs; install cuda-python for them.")

    def release_graph(self, graph: Any) -> None:
        """Not available."""
        raise EngineError("pycuda captures no CUDA graphs; install cuda-python for them.")

    def close(self) -> None:
        """Release what is left, and the context."""
        if self._closed:
            return
        self._closed = True
        with self.attached():
            self._streams.clear()
            self._memory.clear()
            self._pinned.clear()
        self._context.detach()

    @contextlib.contextmanager
    def _translated(self, call: str) -> Iterator[None]:
        try:
            yield
        except self._driver.MemoryError as error:
            raise MemoryError(f"{call} failed: {error}") from error
        except self._driver.Error as error:
            raise EngineError(f"{call} failed: {error}. Check the GPU with 'tocom doctor'.") from error

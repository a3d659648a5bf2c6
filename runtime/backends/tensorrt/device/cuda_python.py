"""The device through NVIDIA's ``cuda-python`` (the CUDA runtime API)."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import EngineError

__all__ = ["CudaPythonDevice"]


class CudaPythonDevice:
    """One GPU through ``cuda.bindings.runtime``.

    Args:
        index: Which GPU.
        cudart: The module; given by tests, imported otherwise.

    Raises:
        EngineError: cuda-python is not installed, or shows no such GPU.
    """

    library = "cuda-python"
    captures = True

    def __init__(self, index: int = 0, cudart: Any = None) -> None:
        if cudart is None:
            try:
                cudart = importlib.import_module("cuda.bindings.runtime")
            except ImportError as error:
                raise EngineError("cuda-python is not installed. Install it: pip install 'tocom[cuda]'.") from error
        self._cudart = cudart
        self._index = index
        self._streams: dict[int, Any] = {}
        count = self._call("cudaGetDeviceCount")
        if index >= count:
            raise EngineError(f"This machine shows {count} GPUs, number {index} was asked for.")
        self._call("cudaSetDevice", index)

    def describe(self) -> Mapping[str, str]:
        """Return name, compute capability and driver version."""
        properties = self._call("cudaGetDeviceProperties", self._index)
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        version = self._call("cudaDriverGetVersion")
        return {
            "gpu": name.rstrip("\0"),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "driver": f"{version // 1000}.{version % 1000 // 10}",
        }

    def memory(self) -> tuple[int, int]:
        """Return the free and the total memory, bytes."""
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Select the GPU on this thread."""
        self._call("cudaSetDevice", self._index)
        yield

    def allocate(self, size: int) -> int:
        """Return a pointer to device memory."""
        return int(self._call("cudaMalloc", max(size, 1)))

    def release(self, pointer: int) -> None:
        """Give device memory back."""
        self._call("cudaFree", pointer)

    def pinned(self, size: int) -> NDArray[Any]:
        """Return page-locked host memory."""
        pointer = int(self._call("cudaHostAlloc", max(size, 1), 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))

    def release_pinned(self, array: NDArray[Any]) -> None:
        """Give page-locked memory back."""
        self._call("cudaFreeHost", array.ctypes.data)

    def create_stream(self) -> int:
        """Return a new non-blocking stream."""
        stream = self._call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking)
        self._streams[int(stream)] = stream
        return int(stream)

    def release_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", self._streams.pop(stream))

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        self._call("cudaStreamSynchronize", stream)

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy host memory to device memory."""
        self._call("cudaMemcpyAsync", target, source, size, self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy device memory to host memory."""
        self._call("cudaMemcpyAsync", target, source, size, self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def begin_capture(self, stream: int) -> None:
        """Start recording a stream; other threads' calls are not disturbed."""
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        """Return the recorded graph, instantiated."""
        graph = self._call("cudaStreamEndCapture", stream)
        executable = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return executable

    def launch(self, graph: Any, stream: int) -> None:
        """Run a graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def release_graph(self, graph: Any) -> None:
        """Destroy a graph."""
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Destroy the streams that are left. The primary context belongs to the process."""
        for stream in list(self._streams):
            self.release_stream(stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._cudart, name)(*arguments)
        if int(status) == 0:
            return values[0] if len(values) == 1 else tuple(values) if values else None
        _, text = self._cudart.cudaGetErrorString(status)
        words = text.decode() if isinstance(text, bytes) else str(text)
        message = f"{name} failed: {words} (CUDA error {int(status)})"
        if int(status) == int(self._cudart.cudaError_t.cudaErrorMemoryAllocation):
            raise MemoryError(message)
        raise EngineError(f"{message}. Check the GPU and its driver with 'tocom doctor'.")

"""The device interface. All three implementations pass one contract test suite."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = ["NON_BLOCKING", "Device"]

# CU_STREAM_NON_BLOCKING of cuda.h.
NON_BLOCKING = 1


class Device(Protocol):
    """One GPU. Pointers and streams are integers; ``pinned`` memory is a byte array.

    Calls about memory, streams and graphs are made inside :meth:`attached`. Every failing call raises EngineError,
    naming the call and CUDA's own words; a lack of memory is a MemoryError.

    Attributes:
        library: ``libcuda``, ``pycuda`` or ``cuda-python``.
        index: Which GPU.
        captures: CUDA graphs can be captured.
    """

    library: str
    index: int
    captures: bool

    def describe(self) -> Mapping[str, str]:
        """Return what identifies the GPU: name, compute capability, driver version."""

    def memory(self) -> tuple[int, int]:
        """Return the free and the total memory, bytes."""

    def attached(self) -> AbstractContextManager[None]:
        """Make the GPU current on this thread for the block."""

    def allocate(self, size: int) -> int:
        """Return a pointer to ``size`` bytes of device memory, aligned to 256 bytes."""

    def release(self, pointer: int) -> None:
        """Give device memory back."""

    def pinned(self, size: int) -> NDArray[Any]:
        """Return ``size`` bytes of page-locked host memory as a uint8 array."""

    def release_pinned(self, array: NDArray[Any]) -> None:
        """Give page-locked memory back; the array must not be used afterwards."""

    def create_stream(self) -> int:
        """Return a new stream that does not wait for the default stream."""

    def release_stream(self, stream: int) -> None:
        """Destroy a stream."""

    def synchronize(self, stream: int) -> None:
        """Wait until all work of a stream is done."""

    def wait_for(self, stream: int, producer: int) -> None:
        """Let a stream of ours go on only after what another library's stream was given until now."""

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy page-locked memory, from the start of one of our blocks, to device memory, in stream order."""

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy device memory to page-locked memory, to the start of one of our blocks, in stream order."""

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy within device memory, in stream order."""

    def begin_capture(self, stream: int) -> None:
        """Record what the stream is given from now on, instead of running it."""

    def end_capture(self, stream: int) -> Any:
        """Return the recorded graph, ready to launch. The stream records no longer, also when this raises."""

    def launch(self, graph: Any, stream: int) -> None:
        """Run a graph."""

    def release_graph(self, graph: Any) -> None:
        """Destroy a graph."""

    def close(self) -> None:
        """Release the GPU. More than once is fine."""

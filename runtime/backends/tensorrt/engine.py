"""One TensorRT engine on its stream, with its buffers, and a context and a CUDA graph per batch size.

By NVIDIA's rules for graphs: a context of its own for every graph; shape set, one plain run and a synchronization
before the capture; only the copies and the enqueue inside it; and where a capture fails, plain launches.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import EngineError
from tocom.runtime.backends.arrays import DeviceImages
from tocom.runtime.backends.tensorrt.context import Context, Shared

if TYPE_CHECKING:
    import tensorrt

__all__ = ["TensorRtEngine"]

log = logging.getLogger("tocom.runtime.tensorrt")

# Batch sizes beyond these run plainly: every context keeps some memory of TensorRT's own.
_MAX_GRAPHS = 8

_FLOAT32 = np.dtype(np.float32)

# TensorRT wants the tensors that it is given to begin at such addresses.
_ALIGNMENT = 256


class TensorRtEngine:
    """One engine with its contexts, buffers and graphs.

    Args:
        degree: Its degree.
        engine: The ``ICudaEngine``.
        shared: The GPU, the stream, and the scratch memory, which is already large enough.
        max_batch: Largest batch that buffers are made for.
        dtype: Type of the images; all outputs are float32.

    Raises:
        EngineError: The context cannot be made.
        MemoryError: The device has no room for the buffers.
    """

    def __init__(
        self,
        degree: int,
        engine: tensorrt.ICudaEngine,
        shared: Shared,
        max_batch: int,
        dtype: np.dtype[Any] = _FLOAT32,
    ) -> None:
        self.degree = degree
        self._engine: tensorrt.ICudaEngine | None = engine
        self._shared, self._device = shared, shared.device
        self._captures = shared.device.captures
        self._device_memory: list[int] = []
        self._pinned: dict[str, NDArray[Any]] = {}
        self._by_batch: dict[int, Context] = {}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._input = next(name for name in names if engine.get_tensor_mode(name) == shared.trt.TensorIOMode.INPUT)
        self._dtypes = {name: dtype if name == self._input else _FLOAT32 for name in names}
        self._outputs = [name for name in names if name != self._input]
        self._tails = {name: _tail(engine.get_tensor_shape(name)) for name in names}
        self._pointers: dict[str, int] = {}
        # For images in GPU memory, whose addresses change, and for whatever no graph is kept for.
        self._plain: Context | None = Context(engine, degree, shared, self._pointers)
        try:
            for name in names:
                size = self._bytes(name, max_batch)
                self._pointers[name] = self._device.allocate(size)
                self._device_memory.append(self._pointers[name])
                self._pinned[name] = self._device.pinned(size)
        except BaseException:
            self.close()
            raise

    def run(self, images: NDArray[Any] | DeviceImages) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; arrays that no later call touches."""
        batch = len(images)
        with self._device.attached():
            if self._plain is None:
                raise EngineError(f"the engine of degree {self.degree} is closed")
            if isinstance(images, DeviceImages):
                self._run_in_place(self._plain, images)
            else:
                self._host(self._input, batch)[:] = images
                self._run_buffered(self._context_for(batch), batch)
            self._device.synchronize(self._shared.stream)
            return {name: self._host(name, batch).copy() for name in self._outputs}

    def is_settled(self, batch: int) -> bool:
        """Return whether this batch size runs from a graph by now, or none is to be had."""
        context = self._by_batch.get(batch)
        if not self._captures or context is None:
            return not self._captures or len(self._by_batch) >= _MAX_GRAPHS
        return context.graph is not None

    def close(self) -> None:
        """Give graphs, buffers and the contexts back. More than once is fine."""
        with self._device.attached():
            # What a failed run left in the stream may still use the buffers; a lost device has nothing left to do.
            with contextlib.suppress(EngineError):
                self._device.synchronize(self._shared.stream)
            for context in self._by_batch.values():
                context.drop_graph()
            # TensorRT's objects before the memory that they were given, and with the GPU current.
            self._by_batch = {}
            self._plain = self._engine = None
            for pointer in self._device_memory:
                self._device.release(pointer)
            for array in self._pinned.values():
                self._device.release_pinned(array)
        self._device_memory, self._pinned = [], {}

    def _context_for(self, batch: int) -> Context:
        """Return the context of a batch size; the one for plain runs where no graph is to be had."""
        assert self._plain is not None
        assert self._engine is not None
        found = self._by_batch.get(batch)
        if found is None and self._captures and len(self._by_batch) < _MAX_GRAPHS:
            try:
                found = self._by_batch[batch] = Context(self._engine, self.degree, self._shared, self._pointers)
            except (EngineError, MemoryError) as error:
                self._give_up(error)
        return found if found is not None and self._captures else self._plain

    def _run_buffered(self, context: Context, batch: int) -> None:
        """Launch the batch size's graph; capture it first where its context ran plainly before."""
        context.prepare(self._input, (batch, *self._tails[self._input]))
        if context is self._plain:
            context.set_address(self._input, self._pointers[self._input])
        elif context.graph is None and context.capturable:
            context.graph = self._capture(context, batch)
        if context.graph is not None:
            self._device.launch(context.graph, self._shared.stream)
        else:
            self._enqueue(context, batch)

    def _capture(self, context: Context, batch: int) -> Any:
        """Return the batch's work as a graph; None where that fails, and then no graph is tried again."""
        stream, graph = self._shared.stream, None
        failure: Exception | None = None
        try:
            self._device.begin_capture(stream)
            try:
                self._enqueue(context, batch)
            except EngineError as error:
                failure = error
            # Also then: a stream that records takes no other work.
            graph = self._device.end_capture(stream)
        except (EngineError, MemoryError) as error:
            failure = failure or error
        if failure is not None:
            if graph is not None:
                self._device.release_graph(graph)
            self._give_up(failure)
            return None
        return graph

    def _give_up(self, why: Exception) -> None:
        self._captures = False
        log.warning("degree %d runs without CUDA graphs from now on: %s", self.degree, why)

    def _enqueue(self, context: Context, batch: int) -> None:
        size = self._bytes(self._input, batch)
        source = self._pinned[self._input].ctypes.data
        self._device.to_device(self._pointers[self._input], source, size, self._shared.stream)
        context.execute()
        self._fetch(batch)

    def _run_in_place(self, context: Context, images: DeviceImages) -> None:
        """Read the caller's GPU memory where it lies, once what its stream was given is done."""
        self._device.wait_for(self._shared.stream, images.stream)
        pointer = images.pointer
        if pointer % _ALIGNMENT:
            pointer = self._pointers[self._input]
            size = self._bytes(self._input, len(images))
            self._device.copy(pointer, images.pointer, size, self._shared.stream)
        context.prepare(self._input, (len(images), *self._tails[self._input]))
        context.set_address(self._input, pointer)
        context.execute()
        self._fetch(len(images))

    def _fetch(self, batch: int) -> None:
        for name in self._outputs:
            size = self._bytes(name, batch)
            target = self._pinned[name].ctypes.data
            self._device.to_host(target, self._pointers[name], size, self._shared.stream)

    def _bytes(self, name: str, batch: int) -> int:
        return self._dtypes[name].itemsize * batch * math.prod(self._tails[name])

    def _host(self, name: str, batch: int) -> NDArray[Any]:
        """Return the page-locked memory of a tensor as an array [batch, …]."""
        size = self._bytes(name, batch)
        return self._pinned[name][:size].view(self._dtypes[name]).reshape(batch, *self._tails[name])


def _tail(shape: tensorrt.Dims) -> tuple[int, ...]:
    """Return a shape without its batch."""
    return tuple(int(shape[axis]) for axis in range(1, len(shape)))

"""One TensorRT engine on its stream, with its buffers, its graphs and the scratch memory that all share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import EngineError
from tocom.runtime.backends.arrays import DeviceImages
from tocom.runtime.backends.tensorrt.device.base import Device
from tocom.runtime.backends.tensorrt.library import LogCapture

__all__ = ["Arena", "TensorRtEngine"]


class Arena:
    """Scratch memory for all engines of a backend, as large as the neediest one wants."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.pointer = 0
        self.size = 0

    def ensure(self, size: int) -> None:
        """Make it at least ``size`` bytes. Its address may change: engines compare :attr:`pointer` before they run."""
        if size <= self.size:
            return
        self.close()
        self.pointer = self._device.allocate(size)
        self.size = size

    def close(self) -> None:
        """Give the memory back."""
        if self.pointer:
            self._device.release(self.pointer)
        self.pointer = self.size = 0


class TensorRtEngine:
    """One engine with its context, buffers and graphs.

    Args:
        degree: Its degree.
        engine: The ``ICudaEngine``.
        device: The GPU.
        arena: The shared scratch memory; already large enough.
        stream: Stream to run on.
        log: What TensorRT logs.
        trt: TensorRT's module.
        max_batch: Largest batch that buffers are made for.

    Raises:
        EngineError: The context cannot be made.
        MemoryError: The device has no room for the buffers.
    """

    def __init__(
        self,
        degree: int,
        engine: Any,
        *,
        device: Device,
        arena: Arena,
        stream: int,
        log: LogCapture,
        trt: Any,
        max_batch: int,
    ) -> None:
        self.degree = degree
        self._engine, self._device, self._arena, self._stream, self._log = engine, device, arena, stream, log
        self._max_batch = max_batch
        self._graphs: dict[int, Any] = {}
        self._seen: set[int] = set()
        self._bound = 0
        self._device_memory: list[int] = []
        self._pinned: dict[str, NDArray[Any]] = {}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._input = next(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        self._outputs = [name for name in names if name != self._input]
        self._pointers: dict[str, int] = {}
        self._context = _unmanaged_context(engine, trt)
        if self._context is None:
            raise EngineError(f"TensorRT makes no context for degree {degree}: {log.take()}.")
        try:
            for name in names:
                size = 4 * max_batch * int(np.prod(tuple(engine.get_tensor_shape(name))[1:], dtype=np.int64))
                self._pointers[name] = device.allocate(size)
                self._device_memory.append(self._pointers[name])
                self._pinned[name] = device.pinned(size)
        except BaseException:
            self.close()
            raise
        self._tails = {name: tuple(engine.get_tensor_shape(name))[1:] for name in names}

    def run(self, images: NDArray[Any] | DeviceImages) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; arrays that no later call touches."""
        batch = len(images)
        device = self._device
        with device.attached():
            self._bind()
            if isinstance(images, DeviceImages):
                self._run_in_place(images)
            else:
                size = images.nbytes
                self._pinned[self._input][:size].view(np.float32)[:] = images.reshape(-1)
                graph = self._graphs.get(batch)
                if graph is None:
                    graph = self._first_runs(batch)
                if graph is not None:
                    device.launch(graph, self._stream)
            device.synchronize(self._stream)
            return {name: self._host(name, batch).copy() for name in self._outputs}

    def close(self) -> None:
        """Give graphs, buffers and the context back. More than once is fine."""
        with self._device.attached():
            self._drop_graphs()
            for pointer in self._device_memory:
                self._device.release(pointer)
            for array in self._pinned.values():
                self._device.release_pinned(array)
        self._device_memory, self._pinned = [], {}
        self._context = self._engine = None

    def _bind(self) -> None:
        if self._context is None:
            raise EngineError(f"the engine of degree {self.degree} is closed")
        if self._bound == self._arena.pointer and self._bound:
            return
        # A graph holds the addresses that it was captured with.
        self._drop_graphs()
        if hasattr(self._context, "set_device_memory"):
            self._context.set_device_memory(self._arena.pointer, self._arena.size)
        else:
            self._context.device_memory = self._arena.pointer
        for name, pointer in self._pointers.items():
            self._require(self._context.set_tensor_address(name, pointer), "set_tensor_address")
        self._bound = self._arena.pointer

    def _first_runs(self, batch: int) -> Any:
        """Run a batch size plainly the first time; return a captured graph the second time, where graphs work."""
        if batch in self._seen and self._capturable():
            self._device.begin_capture(self._stream)
            try:
                self._enqueue(batch)
            except BaseException:
                # Capturing must end even then, or the stream stays unusable.
                self._device.release_graph(self._device.end_capture(self._stream))
                raise
            graph = self._device.end_capture(self._stream)
            self._graphs[batch] = graph
            return graph
        self._seen.add(batch)
        self._enqueue(batch)
        return None

    def _capturable(self) -> bool:
        """Return whether the next enqueue can be captured; TensorRT-RTX cannot while it still compiles kernels."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return self._device.captures and (ask is None or bool(ask(self._stream)))

    def _enqueue(self, batch: int) -> None:
        self._set_shape(batch)
        size = 4 * batch * int(np.prod(self._tails[self._input], dtype=np.int64))
        self._device.to_device(self._pointers[self._input], self._pinned[self._input].ctypes.data, size, self._stream)
        self._execute()
        self._fetch(batch)

    def _run_in_place(self, images: DeviceImages) -> None:
        """Read the caller's GPU memory where it lies; its address changes, so no graph holds it."""
        if images.stream is not None:
            self._device.synchronize(images.stream)
        self._set_shape(len(images))
        self._require(self._context.set_tensor_address(self._input, images.pointer), "set_tensor_address")
        try:
            self._execute()
            self._fetch(len(images))
        finally:
            self._context.set_tensor_address(self._input, self._pointers[self._input])

    def _set_shape(self, batch: int) -> None:
        shape = (batch, *self._tails[self._input])
        self._require(self._context.set_input_shape(self._input, shape), f"set_input_shape{shape}")

    def _execute(self) -> None:
        self._require(self._context.execute_async_v3(self._stream), "execute_async_v3")

    def _fetch(self, batch: int) -> None:
        for name in self._outputs:
            size = self._host(name, batch).nbytes
            self._device.to_host(self._pinned[name].ctypes.data, self._pointers[name], size, self._stream)

    def _host(self, name: str, batch: int) -> NDArray[Any]:
        tail = self._tails[name]
        count = batch * int(np.prod(tail, dtype=np.int64))
        return self._pinned[name].view(np.float32)[:count].reshape(batch, *tail)

    def _require(self, done: Any, call: str) -> None:
        if not done:
            raise EngineError(f"TensorRT refused {call} at degree {self.degree}: {self._log.take()}.")

    def _drop_graphs(self) -> None:
        for graph in self._graphs.values():
            self._device.release_graph(graph)
        self._graphs.clear()
        self._seen.clear()


def scratch_bytes(engine: Any) -> int:
    """Return what a context of the engine needs, under the name that this TensorRT has for it."""
    size = getattr(engine, "device_memory_size_v2", None)
    return int(engine.device_memory_size if size is None else size)


def _unmanaged_context(engine: Any, trt: Any) -> Any:
    """Return a context without scratch memory of its own."""
    strategy = getattr(trt, "ExecutionContextAllocationStrategy", None)
    if strategy is not None:
        return engine.create_execution_context(strategy.USER_MANAGED)
    return engine.create_execution_context_without_device_memory()

"""One execution context of an engine: scratch memory, addresses, shape, and its CUDA graph once captured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tocom.errors import EngineError
from tocom.runtime.backends.tensorrt.device.select import Device
from tocom.runtime.backends.tensorrt.library import LogCapture

if TYPE_CHECKING:
    import tensorrt

__all__ = ["Arena", "Context", "Shared"]


class Arena:
    """Scratch memory for all contexts of a backend, as large as the neediest engine wants."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.pointer = 0
        self.size = 0

    def ensure(self, size: int) -> None:
        """Make it at least ``size`` bytes. Its address may change: contexts compare :attr:`pointer` before they run."""
        if size <= self.size:
            return
        # The old block goes last: where there is no room for both, the engines that are loaded go on with it.
        pointer = self._device.allocate(size)
        self.close()
        self.pointer, self.size = pointer, size

    def close(self) -> None:
        """Give the memory back."""
        if self.pointer:
            self._device.release(self.pointer)
        self.pointer = self.size = 0


@dataclass(frozen=True)
class Shared:
    """What all engines of a backend use one after another.

    Attributes:
        device: The GPU.
        stream: Stream that everything runs on.
        arena: Scratch memory; large enough for every engine that is loaded.
        log: What TensorRT logs.
        trt: TensorRT's module.
    """

    device: Device
    stream: int
    arena: Arena
    log: LogCapture
    trt: Any


class Context:
    """An ``IExecutionContext`` without memory of its own.

    Args:
        engine: The ``ICudaEngine``.
        degree: Its degree, for messages.
        shared: What all engines use.
        pointers: Address of every input and output.

    Raises:
        EngineError: TensorRT makes none.
        MemoryError: There is no room for what TensorRT keeps of it.
    """

    def __init__(self, engine: tensorrt.ICudaEngine, degree: int, shared: Shared, pointers: Mapping[str, int]) -> None:
        self._degree, self._shared, self._pointers = degree, shared, pointers
        context: tensorrt.IExecutionContext | None = engine.create_execution_context(
            shared.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if context is None:
            raise shared.log.refusal(f"TensorRT makes no context for degree {degree}")
        self._context = context
        self._bound = 0
        self._shape: tuple[int, ...] = ()
        self._ran = False
        self.graph: Any = None

    def prepare(self, name: str, shape: tuple[int, ...]) -> None:
        """Set memory and shape where they are not the ones of the last run; a graph of before is then dropped."""
        if self._bound != self._shared.arena.pointer:
            # A graph holds the addresses that it was captured with.
            self.drop_graph()
            self._context.set_device_memory(self._shared.arena.pointer, self._shared.arena.size)
            for tensor, pointer in self._pointers.items():
                self.set_address(tensor, pointer)
            self._bound = self._shared.arena.pointer
        if self._shape != shape:
            self.drop_graph()
            self._shape = ()
            self._require(self._context.set_input_shape(name, shape), f"set_input_shape{shape}")
            self._shape = shape

    def set_address(self, name: str, pointer: int) -> None:
        """Let a tensor lie elsewhere from the next run on."""
        self._require(self._context.set_tensor_address(name, pointer), f"set_tensor_address of {name}")

    def execute(self) -> None:
        """Give the stream the inference."""
        self._require(self._context.execute_async_v3(self._shared.stream), "execute_async_v3")
        self._ran = True

    @property
    def capturable(self) -> bool:
        """It ran once as it is, so that TensorRT has nothing left to set up; TensorRT-RTX may still compile kernels."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return self._ran and (ask is None or bool(ask(self._shared.stream)))

    def drop_graph(self) -> None:
        """Destroy the graph, if there is one; the next run is a plain one."""
        if self.graph is not None:
            self._shared.device.release_graph(self.graph)
        self.graph, self._ran = None, False

    def _require(self, done: Any, call: str) -> None:
        if not done:
            raise EngineError(f"TensorRT refused {call} at degree {self._degree}: {self._shared.log.take()}.")

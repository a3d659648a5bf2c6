"""``cuda.bindings.runtime`` in host memory: the functions that the device layer calls, with CUDA's own rules.

Pointers must lie in live allocations, streams must be live, a capturing stream records in place of running, and
forbidden calls during a capture fail. ``fail_next`` makes a call return an error once; while ``lost``, every call
fails, as after an error that CUDA calls sticky.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900


OK = cudaError_t.cudaSuccess


class Handle:
    """A stream: an object whose int is its handle, as in cuda-python."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __int__(self) -> int:
        return self.value


class ScriptedCuda:
    """Stands where the module stands."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking = 1

    def __init__(self, *, gpus: int = 1, memory: int = 1 << 30) -> None:
        self.gpus, self.total = gpus, memory
        self.device: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.recording: dict[int, list[Callable[[], None]]] = {}
        self.graphs: set[int] = set()
        self.plain: dict[int, list[Callable[[], None]]] = {}
        self.calls: list[str] = []
        self.fail: dict[str, list[cudaError_t]] = {}
        self.lost = False
        self._next = 1000

    def fail_next(self, name: str, error: cudaError_t) -> None:
        self.fail.setdefault(name, []).append(error)

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(value) or isinstance(value, type):
            return value

        def called(*arguments: Any) -> Any:
            self.calls.append(name)
            if self.lost and name != "cudaGetErrorString":
                return (cudaError_t.cudaErrorIllegalAddress, None)
            if self.fail.get(name):
                return (self.fail[name].pop(0), None)
            return value(*arguments)

        return called

    def forget(self) -> None:
        """Lose all memory, streams and graphs, as a device does that was reset."""
        for held in (self.device, self.host, self.streams, self.recording, self.graphs, self.plain):
            held.clear()

    def used(self) -> int:
        return sum(len(buffer) for buffer in self.device.values())

    def check_range(self, pointer: int, size: int, pool: dict[int, Any]) -> bool:
        return any(start <= pointer and pointer + size <= start + len(buffer) for start, buffer in pool.items())

    def enqueue(self, stream: int, work: Callable[[], None]) -> cudaError_t:
        """Run or record work on a stream."""
        if int(stream) not in self.streams:
            return cudaError_t.cudaErrorInvalidResourceHandle
        if int(stream) in self.recording:
            self.recording[int(stream)].append(work)
        else:
            work()
        return OK

    def cudaGetDeviceCount(self) -> Any:
        return OK, self.gpus

    def cudaSetDevice(self, index: int) -> Any:
        return (OK,)

    def cudaGetDeviceProperties(self, index: int) -> Any:
        return OK, SimpleNamespace(name=b"Scripted GPU\0", major=8, minor=7)

    def cudaDriverGetVersion(self) -> Any:
        return OK, 13010

    def cudaGetErrorString(self, error: Any) -> Any:
        return OK, cudaError_t(error).name.encode()

    def cudaMemGetInfo(self) -> Any:
        return OK, self.total - self.used(), self.total

    def cudaMalloc(self, size: int) -> Any:
        if self.recording:
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None
        if self.used() + size > self.total:
            return cudaError_t.cudaErrorMemoryAllocation, None
        buffer = (ctypes.c_uint8 * size)()
        self.device[ctypes.addressof(buffer)] = buffer
        return OK, ctypes.addressof(buffer)

    def cudaFree(self, pointer: int) -> Any:
        return (OK if self.device.pop(pointer, None) is not None else cudaError_t.cudaErrorInvalidResourceHandle,)

    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        buffer = (ctypes.c_uint8 * size)()
        self.host[ctypes.addressof(buffer)] = buffer
        return OK, ctypes.addressof(buffer)

    def cudaFreeHost(self, pointer: int) -> Any:
        return (OK if self.host.pop(pointer, None) is not None else cudaError_t.cudaErrorInvalidResourceHandle,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == self.cudaStreamNonBlocking
        self._next += 1
        self.streams.add(self._next)
        return OK, Handle(self._next)

    def cudaStreamDestroy(self, stream: Any) -> Any:
        if int(stream) not in self.streams:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        self.streams.remove(int(stream))
        return (OK,)

    def cudaStreamSynchronize(self, stream: Any) -> Any:
        if int(stream) in self.recording:
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        return (OK if int(stream) in self.streams else cudaError_t.cudaErrorInvalidResourceHandle,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: Any) -> Any:
        target_pool, source_pool = (self.device, self.host) if kind == 1 else (self.host, self.device)

        def valid() -> bool:
            return self.check_range(target, size, target_pool) and self.check_range(source, size, source_pool)

        if not valid():
            return (cudaError_t.cudaErrorIllegalAddress,)

        def copy() -> None:
            assert valid(), "a graph touched memory that was given back"
            ctypes.memmove(target, source, size)

        return (self.enqueue(stream, copy),)

    def cudaStreamBeginCapture(self, stream: Any, mode: int) -> Any:
        self.recording[int(stream)] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: Any) -> Any:
        self._next += 1
        self.plain[self._next] = self.recording.pop(int(stream))
        return OK, self._next

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        self._next += 1
        self.plain[self._next] = self.plain[graph]
        self.graphs.add(self._next)
        return OK, self._next

    def cudaGraphDestroy(self, graph: int) -> Any:
        del self.plain[graph]
        return (OK,)

    def cudaGraphLaunch(self, graph: int, stream: Any) -> Any:
        for work in self.plain[graph]:
            work()
        return (OK if graph in self.graphs else cudaError_t.cudaErrorInvalidResourceHandle,)

    def cudaGraphExecDestroy(self, graph: int) -> Any:
        if graph not in self.graphs:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        self.graphs.remove(graph)
        del self.plain[graph]
        return (OK,)

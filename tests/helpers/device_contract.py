"""The contract of a device: what every library that calls CUDA must do, on the host's driver and on a real one.

``python device_contract.py LAYER`` runs all of it in this process and prints a JSON object, case → what went wrong.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from host_cuda import ILLEGAL_ADDRESS, NO_DEVICE, OS_CALL, OUT_OF_MEMORY, UNKNOWN, HostCuda

from tocom.errors import EngineError
from tocom.runtime.backends.arrays import LEGACY_STREAM
from tocom.runtime.backends.tensorrt.device.select import LIBRARIES, Device

__all__ = ["CASES", "ON_A_GPU"]

Make = Callable[..., Device]
SIZE = 4096


@contextlib.contextmanager
def opened(make: Make, cuda: HostCuda | None) -> Iterator[tuple[Device, int, Any, Any, int]]:
    """Yield a device with a stream, two page-locked blocks and device memory; check that nothing is left after."""
    device = make()
    with device.attached():
        stream, pointer = device.create_stream(), device.allocate(SIZE)
        source, target = device.pinned(SIZE), device.pinned(SIZE)
        source[:] = np.arange(SIZE) % 251
        target[:] = 0
        yield device, stream, source, target, pointer
        device.synchronize(stream)
        device.release(pointer)
        device.release_pinned(source)
        device.release_pinned(target)
    device.close()
    device.close()
    if cuda is not None:
        gc.collect()  # pycuda's streams end with their last reference, which a traceback may hold
        assert cuda.notes() == ""
        left = cuda.leaks()
        # pycuda's primary context stays for the process.
        assert left == ({"contexts": 1} if device.library == "pycuda" else {}), left


def one_line(call: Callable[[], Any], *expected: str, kind: type[Exception] = EngineError) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    for words in expected:
        assert words in str(caught.value), f"{words!r} is not in: {caught.value}"
    assert "\n" not in str(caught.value)


def says_what_the_gpu_is(make: Make, cuda: HostCuda | None) -> None:
    with opened(make, cuda) as (device, _, _, _, pointer):
        described = device.describe()
        free, total = device.memory()
        assert set(described) == {"gpu", "compute_capability", "driver"}
        assert 0 < free <= total
        assert pointer % 256 == 0
        if cuda is not None:
            assert dict(described) == {"gpu": "Host GPU 0", "compute_capability": "8.7", "driver": "12.6"}
            assert (free, total) == ((1 << 30) - SIZE, 1 << 30)


def copies_in_stream_order(make: Make, cuda: HostCuda | None) -> None:
    with opened(make, cuda) as (device, stream, source, target, pointer):
        second = device.allocate(SIZE)
        device.to_device(pointer, source.ctypes.data, SIZE, stream)
        device.copy(second, pointer, SIZE, stream)
        device.to_host(target.ctypes.data, second, SIZE, stream)
        if cuda is not None:
            assert (target == 0).all(), "the copies must not wait for the device"
        device.synchronize(stream)
        np.testing.assert_array_equal(source, target)
        # A part of a block, from its start.
        target[:] = 0
        device.to_host(target.ctypes.data, pointer, 100, stream)
        device.synchronize(stream)
        assert (target[:100] == source[:100]).all()
        assert (target[100:] == 0).all()
        device.release(second)


def captures_or_says_that_it_does_not(make: Make, cuda: HostCuda | None) -> None:
    with opened(make, cuda) as (device, stream, source, target, pointer):
        if not device.captures:
            for call in (device.begin_capture, device.end_capture, device.release_graph):
                one_line(lambda call=call: call(stream), "captures no CUDA graphs")
            one_line(lambda: device.launch(None, stream), "captures no CUDA graphs")
            return
        device.begin_capture(stream)
        device.to_device(pointer, source.ctypes.data, SIZE, stream)
        device.to_host(target.ctypes.data, pointer, SIZE, stream)
        graph = device.end_capture(stream)
        device.synchronize(stream)
        assert (target == 0).all(), "what was recorded must not have run"
        for value in (7, 9):
            source[:] = value
            device.launch(graph, stream)
            device.synchronize(stream)
            assert (target == value).all()
        device.release_graph(graph)


def a_failed_capture_ends(make: Make, cuda: HostCuda | None) -> None:
    with opened(make, cuda) as (device, stream, source, target, pointer):
        if not device.captures:
            return
        device.begin_capture(stream)
        one_line(lambda: device.synchronize(stream), "cuStreamSynchronize failed: operation not permitted when stream")
        one_line(lambda: device.end_capture(stream), "cuStreamEndCapture failed")
        device.to_device(pointer, source.ctypes.data, SIZE, stream)
        device.to_host(target.ctypes.data, pointer, SIZE, stream)
        device.synchronize(stream)
        np.testing.assert_array_equal(source, target)


def waits_for_what_another_library_still_writes(make: Make, cuda: HostCuda) -> None:
    """On a stream of the other library's own, and on the legacy stream, which non-blocking streams do not wait for."""
    with opened(make, cuda) as (device, stream, _, target, pointer):
        own = device.create_stream()  # stands for the other library's
        for value, producer in ((5, own), (6, LEGACY_STREAM)):
            kernel = _writes(cuda, pointer, value)
            assert cuda.launch(producer, kernel) == 0
            device.to_host(target.ctypes.data, pointer, SIZE, stream)
            device.synchronize(stream)
            assert (target != value).all(), "without waiting old data are read"
            device.wait_for(stream, producer)
            device.to_host(target.ctypes.data, pointer, SIZE, stream)
            device.synchronize(stream)
            assert (target == value).all()
        device.release_stream(own)


def _writes(cuda: HostCuda, pointer: int, value: int) -> Callable[[], None]:
    def kernel() -> None:
        cuda.view(pointer, (SIZE // 4,)).view(np.uint8)[:] = value

    return kernel


def works_from_several_threads(make: Make, cuda: HostCuda | None) -> None:
    with opened(make, cuda) as (device, stream, source, target, pointer):
        failed: list[BaseException] = []

        def work() -> None:
            try:
                with device.attached(), device.attached():
                    device.to_device(pointer, source.ctypes.data, SIZE, stream)
                    device.to_host(target.ctypes.data, pointer, SIZE, stream)
                    device.synchronize(stream)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not failed, failed
        np.testing.assert_array_equal(source, target)


def too_much_memory_is_a_memory_error(make: Make, cuda: HostCuda | None) -> None:
    with opened(make, cuda) as (device, *_):
        _, total = device.memory()
        one_line(lambda: device.allocate(total * 4), "cuMemAlloc failed: out of memory", kind=MemoryError)


def every_call_that_allocates_may_lack_memory(make: Make, cuda: HostCuda) -> None:
    with opened(make, cuda) as (device, stream, source, _, pointer):
        calls: dict[str, Callable[[], Any]] = {
            "cuMemAlloc_v2": lambda: device.allocate(1),
            "cuMemHostAlloc": lambda: device.pinned(1),
            "cuStreamCreate": device.create_stream,
            "cuMemcpyHtoDAsync_v2": lambda: device.to_device(pointer, source.ctypes.data, 4, stream),
        }
        for symbol, call in calls.items():
            # More than once: pycuda collects garbage and tries again.
            cuda.fail_next(symbol, OUT_OF_MEMORY, times=9)
            one_line(call, symbol.removesuffix("_v2"), "out of memory", kind=MemoryError)
            cuda.fail_next(symbol, OUT_OF_MEMORY, times=0)
        if device.captures:
            for symbol in ("cuStreamEndCapture", "cuGraphInstantiateWithFlags"):
                cuda.fail_next(symbol, OUT_OF_MEMORY)
                device.begin_capture(stream)
                one_line(lambda: device.end_capture(stream), "out of memory", kind=MemoryError)
                assert cuda.live("plain graphs") == 0
    retained = cuda.library.host_cuda_retained()
    if device.library != "pycuda":  # whose context is there already
        for symbol in ("cuDevicePrimaryCtxRetain", "cuEventCreate"):
            cuda.fail_next(symbol, OUT_OF_MEMORY)
            one_line(make, symbol, "out of memory", kind=MemoryError)
            assert cuda.library.host_cuda_retained() == retained, "what failed to open keeps nothing"


def a_gpu_that_cannot_be_opened_is_named(make: Make, cuda: HostCuda) -> None:
    for error, words in (
        (NO_DEVICE, "no CUDA-capable device"),
        (OS_CALL, "OS call failed"),
        (UNKNOWN, "unknown error"),
    ):
        cuda.fail_next("cuInit", error)
        one_line(make, "cuInit failed: ", words, "nvidia-smi")
    one_line(lambda: make(1), "This machine shows 1 GPUs, number 1 was asked for")


def a_driver_that_is_too_old_is_named(make: Make, cuda: HostCuda) -> None:
    cuda.library.host_cuda_version(11000)
    one_line(make, "driver is one of CUDA 11.0", "needs 11.4 or newer", "Update the driver")
    cuda.library.host_cuda_version(12060)


def a_lost_device_refuses_everything_readably(make: Make, cuda: HostCuda) -> None:
    with opened(make, cuda) as (device, stream, source, target, pointer):
        calls: list[Callable[[], Any]] = [
            lambda: device.allocate(1),
            lambda: device.pinned(1),
            lambda: device.synchronize(stream),
            lambda: device.to_device(pointer, source.ctypes.data, SIZE, stream),
            lambda: device.to_host(target.ctypes.data, pointer, SIZE, stream),
            lambda: device.copy(pointer, pointer, SIZE, stream),
            lambda: device.wait_for(stream, LEGACY_STREAM),
            device.create_stream,
            device.memory,
        ]
        if device.captures:
            calls += [lambda: device.begin_capture(stream), lambda: device.end_capture(stream)]
        for error in (ILLEGAL_ADDRESS, UNKNOWN):
            cuda.lose(error)
            for call in calls:
                one_line(call, "failed", "restart it")
        cuda.lose(0)


CASES = {
    function.__name__: function
    for function in (
        says_what_the_gpu_is,
        copies_in_stream_order,
        captures_or_says_that_it_does_not,
        a_failed_capture_ends,
        waits_for_what_another_library_still_writes,
        works_from_several_threads,
        too_much_memory_is_a_memory_error,
        every_call_that_allocates_may_lack_memory,
        a_gpu_that_cannot_be_opened_is_named,
        a_driver_that_is_too_old_is_named,
        a_lost_device_refuses_everything_readably,
    )
}
ON_A_GPU = (
    "says_what_the_gpu_is",
    "copies_in_stream_order",
    "captures_or_says_that_it_does_not",
    "a_failed_capture_ends",
    "works_from_several_threads",
    "too_much_memory_is_a_memory_error",
)


def main(layer: str, library: str | None) -> None:
    results = {}
    # pycuda links to all of CUDA, of which the host's driver has a part: what is not called is not looked up.
    sys.setdlopenflags(os.RTLD_LAZY)
    for name, case in CASES.items():
        if library is None and name not in ON_A_GPU:
            continue
        cuda = HostCuda(path=library) if library else None
        if cuda is not None:
            cuda.library.host_cuda_retain(layer == "pycuda" and bool(results))
        try:
            case(_with(layer), cuda)  # type: ignore[arg-type]
            results[name] = ""
        except BaseException:
            results[name] = traceback.format_exc()
    print(json.dumps(results))


def _with(layer: str) -> Make:
    return lambda index=0: LIBRARIES[layer](index)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)

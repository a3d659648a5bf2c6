"""A ``libcuda.so.1`` on host memory, compiled from ``cuda_driver/``, and what tests set and ask of it.

In this process it is loaded under its path alone. A child whose LD_LIBRARY_PATH begins with :func:`driver_folder`
finds it as the machine's driver, so that packages which link to CUDA run on it unchanged.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.util
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

__all__ = ["HostCuda", "cuda_headers", "driver_folder"]

_SOURCES = Path(__file__).parent / "cuda_driver"
OUT_OF_MEMORY, NO_DEVICE, OS_CALL, ILLEGAL_ADDRESS, UNKNOWN = 2, 100, 304, 700, 999

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_long)


def cuda_headers() -> Iterator[Path]:
    """Yield every folder with a ``cuda.h``: the toolkit's, and those that wheels bring (torch's compiler does)."""
    places = [Path("/usr/local/cuda/include"), *Path("/usr/local").glob("cuda-*/include")]
    for package, inside in (
        ("triton", ["backends/nvidia/include"]),
        ("nvidia", ["cuda_runtime/include", "cu13/include"]),
    ):
        spec = importlib.util.find_spec(package)
        roots = [] if spec is None else spec.submodule_search_locations or []
        places += [Path(root) / name for root in roots for name in inside]
    return (place for place in places if (place / "cuda.h").is_file())


@functools.cache
def driver_folder() -> Path:
    """Return a folder with ``libcuda.so.1``; skip the test where it cannot be compiled."""
    include = next(cuda_headers(), None)
    if shutil.which("gcc") is None or include is None:
        pytest.skip("needs gcc and NVIDIA's cuda.h")
    folder = Path(tempfile.mkdtemp(prefix="tocom-host-cuda-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = folder / "libcuda.so.1"
    # Without a soname: loaded here by its path, it must not answer those who ask this process for the machine's driver.
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", f"-I{include}"]
    source = str(_SOURCES / "driver.c")
    subprocess.run(["gcc", *flags, source, "-o", str(library), "-lpthread", "-ldl"], check=True)
    return folder


class HostCuda:
    """The driver, as new.

    Args:
        gpus: How many it shows.
        memory: Of the GPU, bytes.
        version: 1000 · major + 10 · minor of its CUDA.
        path: The library; the compiled one unless given.
    """

    def __init__(self, *, gpus: int = 1, memory: int = 1 << 30, version: int = 12060, path: str | None = None) -> None:
        self.path = path or str(driver_folder() / "libcuda.so.1")
        self.library = ctypes.CDLL(self.path)
        self.library.host_cuda_notes.restype = ctypes.c_char_p
        self.library.host_cuda_bytes.restype = ctypes.c_void_p
        self.library.host_cuda_bytes.argtypes = (ctypes.c_uint64, ctypes.c_size_t)
        self.library.host_cuda_holds.argtypes = (ctypes.c_uint64, ctypes.c_size_t)
        self.library.host_cuda_live.restype = ctypes.c_size_t
        self.library.host_cuda_kernel.argtypes = (ctypes.c_void_p, _KERNEL, ctypes.c_long)
        self.library.host_cuda_reset(gpus, ctypes.c_size_t(memory), version)
        self._kernels: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()
        self._run = _KERNEL(lambda number: self._kernels[number]())

    def fail_next(self, symbol: str, error: int, after: int = 0, times: int = 1) -> None:
        """Let a function fail so many times, after so many calls that pass."""
        self.library.host_cuda_fail(symbol.encode(), error, after, times)

    def lose(self, error: int = ILLEGAL_ADDRESS) -> None:
        """Let every call fail from now on, as CUDA does after an error that it calls sticky."""
        self.library.host_cuda_lose(error)

    def forget(self) -> None:
        """Bring a lost GPU back, as after a reset: whatever it held is gone."""
        self.library.host_cuda_forget()

    def write(self, pointer: int, values: np.ndarray[Any, Any]) -> None:
        """Put values into device memory at once, beside all streams."""
        values = np.ascontiguousarray(values)
        assert self.library.host_cuda_write(
            ctypes.c_uint64(pointer), ctypes.c_void_p(values.ctypes.data), values.nbytes
        )

    def recording(self, stream: int | None = None) -> bool:
        """Return whether a stream, or any, is being captured."""
        return bool(self.library.host_cuda_recording(ctypes.c_void_p(stream)))

    def calls(self, symbol: str) -> int:
        return int(self.library.host_cuda_calls(symbol.encode()))

    def live(self, what: str) -> int:
        """Return bytes of ``device`` or ``pinned`` memory, or the number of ``streams``, ``events`` or ``graphs``."""
        return int(self.library.host_cuda_live(what.encode()))

    def leaks(self) -> dict[str, int]:
        kinds = ("device", "pinned", "streams", "events", "graphs", "plain graphs")
        left = {kind: self.live(kind) for kind in kinds} | {
            "contexts": self.library.host_cuda_retained(),
            "pushed contexts": self.library.host_cuda_depth(),
        }
        return {kind: count for kind, count in left.items() if count}

    def is_clean(self) -> bool:
        """Return whether all was given back, and nothing undefined was done."""
        return self.notes() == "" and self.leaks() == {}

    def notes(self) -> str:
        """Return what was done that CUDA leaves undefined, a line each."""
        return str(self.library.host_cuda_notes().decode())

    def holds(self, pointer: int, size: int) -> bool:
        """Return whether the bytes lie in one live allocation."""
        return bool(self.library.host_cuda_holds(pointer, size))

    def launch(self, stream: int, kernel: Callable[[], None]) -> int:
        """Give a stream a kernel; return the CUresult. It runs when the stream does, with a graph as often."""
        number = next(self._numbers)
        self._kernels[number] = kernel
        return int(self.library.host_cuda_kernel(stream, self._run, number))

    def view(self, pointer: int, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
        """Return device memory as an array, inside a kernel; zeros, and a note, where none is live."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self.library.host_cuda_bytes(pointer, size)
        if not address:
            return np.zeros(shape, dtype)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)

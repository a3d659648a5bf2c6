"""The kernels' arithmetic, compiled for the host: needs g++ and numpy alone."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
from kernel_cases import SOURCES


def compile_host_kernels(path: Path) -> Path:
    """Compile ``testing/host_harness.cpp`` for this machine; return the library."""
    sources = [SOURCES / "testing" / "host_harness.cpp", SOURCES / "common" / "errors.cpp"]
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"]
    subprocess.run(["g++", *flags, *map(str, sources), "-o", str(path)], check=True)
    return path


class HostKernels:
    """The kernels' arithmetic, compiled for the host, on numpy arrays."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.tocom_host_log.restype = ctypes.c_char_p

    def select(self, values: np.ndarray, count: int, *, counting_limit: int, lowest: bool = False) -> np.ndarray:
        selected = np.zeros(len(values), np.uint8)
        self._library.tocom_host_select(
            _address(values), len(values), count, counting_limit, ctypes.c_bool(lowest), _address(selected)
        )
        return selected.astype(bool)

    def match(self, metric: np.ndarray, r: int, prefix: int, *, counting_limit: int = 256) -> np.ndarray:
        batch, tokens, channels = metric.shape
        destination = np.empty((batch, tokens), np.int64)
        self._library.tocom_host_match(
            _address(metric), batch, tokens, channels, r, prefix, counting_limit, _address(destination)
        )
        return destination

    def prune(
        self, score: np.ndarray, r: int, prefix: int, fuse: bool, *, counting_limit: int = 256
    ) -> tuple[np.ndarray, np.ndarray]:
        batch, tokens = score.shape
        kept = np.empty((batch, tokens - r - fuse), np.int64)
        weight = np.zeros((batch, tokens), np.float32)
        self._library.tocom_host_prune(
            _address(score),
            batch,
            tokens,
            r,
            prefix,
            ctypes.c_bool(fuse),
            counting_limit,
            _address(kept),
            _address(weight),
        )
        return kept, weight

    def error(self, kind: int) -> tuple[int, str]:
        status = self._library.tocom_host_error(kind)
        return status, self._library.tocom_host_log().decode()


def _address(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)

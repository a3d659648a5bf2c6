"""The kernels on torch tensors, through the C interface of ``testing/device_harness.cpp``. Needs nvcc, not TensorRT."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from tocom.export.op_plugin.toolchain import find_toolkit

SOURCES = Path(__file__).parents[3] / "export" / "op_plugin" / "native"
UNITS = (
    "testing/device_harness.cpp",
    "token_merge/match_kernel.cu",
    "token_merge/token_merge_kernel.cu",
    "token_prune/token_prune_kernel.cu",
)
# tocom::TokenType
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 7}


def compile_device_kernels(folder: Path, architecture: int) -> Path:
    """Compile the kernels for one architecture; return the library."""
    toolkit = find_toolkit()
    path = folder / "libtocom_device_harness.so"
    folders = [f"-isystem={include}" for include in toolkit.include if include != Path("/usr/include")]
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    flags = ["-std=c++17", "-O3", "-shared", "-cudart=static", "-Xcompiler=-fPIC", target, f"-I{SOURCES}", *folders]
    units = [str(SOURCES / unit) for unit in UNITS]
    libraries = [f"-L{library}" for library in toolkit.libraries]
    subprocess.run([str(toolkit.nvcc), *flags, *libraries, *units, "-o", str(path)], check=True)
    return path


def compile_emulated_kernels(folder: Path) -> Path:
    """Compile the kernels for the SIMT machine of ``testing/emulation``; return the library.

    Raises:
        EngineError: There is no nvcc, whose folders of CUDA's headers this needs.
    """
    toolkit = find_toolkit()
    path = folder / "libtocom_emulated.so"
    # nvcc hands C++ to the host compiler; it is here for the folders of CUDA's headers alone.
    flags = ["-std=c++17", "-O2", "-shared", "-DTOCOM_EMULATED_DEVICE", "-cudart=none"]
    folders = [f"-I{SOURCES / 'testing' / 'emulation'}", f"-I{SOURCES}", *(f"-I{f}" for f in toolkit.include)]
    warnings = "-Xcompiler=-fPIC,-Wall,-Werror,-Wno-unknown-pragmas"
    source = str(SOURCES / "testing" / "emulated_harness.cpp")
    subprocess.run([str(toolkit.nvcc), *flags, warnings, *folders, source, "-o", str(path)], check=True)
    return path


class DeviceKernels:
    """Each call enqueues on the current stream and raises when a launch fails."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.tocom_token_merge_workspace_bytes.restype = ctypes.c_int64

    def workspace_bytes(self, batch: int, tokens: int, prefix: int) -> int:
        return int(self._library.tocom_token_merge_workspace_bytes(ctypes.c_int64(batch), tokens, prefix))

    def merge_into(
        self,
        x: Tensor,
        keys: Tensor,
        size: Tensor,
        y: Tensor,
        size_out: Tensor,
        log_size: Tensor,
        workspace: Tensor,
        r: int,
        prefix: int,
        destination: Tensor | None = None,
    ) -> int:
        """Launch on given buffers; return the status."""
        batch, tokens, channels = x.shape
        return self._library.tocom_token_merge_launch(
            *map(_address, (x, keys, size, y, size_out, log_size, workspace, destination)),
            ctypes.c_int64(batch),
            tokens,
            channels,
            keys.shape[1],
            keys.shape[3],
            r,
            prefix,
            TYPES[x.dtype],
            _stream(x),
        )

    def merge(self, x: Tensor, keys: Tensor, size: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, channels = x.shape
        y = torch.empty(batch, tokens - r, channels, dtype=x.dtype, device=x.device)
        size_out = torch.empty(batch, tokens - r, 1, device=x.device)
        log_size = torch.empty(batch, 1, 1, tokens - r, dtype=x.dtype, device=x.device)
        workspace = torch.empty(self.workspace_bytes(batch, tokens, prefix), dtype=torch.uint8, device=x.device)
        status = self.merge_into(x, keys, size, y, size_out, log_size, workspace, r, prefix)
        if status != 0:
            raise RuntimeError(f"token_merge: CUDA error {status}")
        return y, size_out, log_size

    def where_merged(self, x: Tensor, keys: Tensor, size: Tensor, r: int, prefix: int) -> Tensor:
        """Return where every token goes, [batch, tokens]."""
        batch, tokens, channels = x.shape
        y = torch.empty(batch, tokens - r, channels, dtype=x.dtype, device=x.device)
        sizes = torch.empty(2, batch, tokens - r, device=x.device)
        workspace = torch.empty(self.workspace_bytes(batch, tokens, prefix), dtype=torch.uint8, device=x.device)
        destination = torch.full((batch, tokens), -1, dtype=torch.int32, device=x.device)
        status = self.merge_into(x, keys, size, y, sizes[0], sizes[1], workspace, r, prefix, destination)
        if status != 0:
            raise RuntimeError(f"token_merge: CUDA error {status}")
        return destination

    def where_pruned(self, x: Tensor, score: Tensor, r: int, prefix: int) -> Tensor:
        """Return where every token goes when the removed ones are fused, [batch, tokens]."""
        destination = torch.full(score.shape, -1, dtype=torch.int32, device=x.device)
        self.prune(x, score, r, prefix, True, destination)
        return destination

    def prune(
        self, x: Tensor, score: Tensor, r: int, prefix: int, fuse: bool, destination: Tensor | None = None
    ) -> Tensor:
        batch, tokens, channels = x.shape
        y = torch.empty(batch, tokens - r, channels, dtype=x.dtype, device=x.device)
        status = self._library.tocom_token_prune_launch(
            *map(_address, (x, score, y, destination)),
            ctypes.c_int64(batch),
            tokens,
            channels,
            r,
            prefix,
            int(fuse),
            TYPES[x.dtype],
            _stream(x),
        )
        if status != 0:
            raise RuntimeError(f"token_prune: CUDA error {status}")
        return y


class EmulatedKernels(DeviceKernels):
    """The same on host memory."""

    def configure(self, multiprocessors: int, reverse: bool) -> None:
        """Set how many multiprocessors launches believe in, and whether threads and blocks run backwards."""
        self._library.tocom_emulation_configure(multiprocessors, ctypes.c_bool(reverse))


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


def _stream(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream if tensor.is_cuda else 0)

"""Images of another library in the host driver's GPU memory, which a stream of that library may still be writing."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from host_cuda import HostCuda

from tocom.runtime.backends.arrays import _DlTensor
from tocom.runtime.backends.tensorrt.device.libcuda import LibcudaDevice

__all__ = ["DlpackImages", "ForeignLibrary", "InterfaceImages"]


class ForeignLibrary:
    """The other library: its own way to the driver, its own stream. Close it to give everything back."""

    def __init__(self, cuda: HostCuda) -> None:
        self.cuda, self.device = cuda, LibcudaDevice(path=cuda.path)
        self.blocks: list[int] = []
        with self.device.attached():
            self.stream = self.device.create_stream()

    def hold(self, images: np.ndarray, offset: int = 0) -> int:
        """Return the address of images, ``offset`` bytes into a block."""
        with self.device.attached():
            self.blocks.append(self.device.allocate(images.nbytes + offset))
        self.cuda.write(self.blocks[-1] + offset, images)
        return self.blocks[-1] + offset

    def write_later(self, pointer: int, images: np.ndarray, stream: int) -> None:
        """Give a stream a kernel that writes the images: they are there once the stream has run."""

        def kernel() -> None:
            self.cuda.view(pointer, images.shape)[:] = images

        with self.device.attached():
            assert self.cuda.launch(stream, kernel) == 0

    def close(self) -> None:
        with self.device.attached():
            self.device.synchronize(self.stream)
            for block in self.blocks:
                self.device.release(block)
            self.device.release_stream(self.stream)
        self.device.close()


class InterfaceImages:
    """What shows ``__cuda_array_interface__`` alone, as Numba's and pycuda's arrays do."""

    def __init__(self, pointer: int, shape: tuple[int, ...], **interface: Any) -> None:
        self.shape = shape
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "<f4", "data": (pointer, True), "version": 3, "strides": None, "stream": None,
            **interface,
        }  # fmt: skip


class _Managed(ctypes.Structure):
    # DLManagedTensor of dlpack.h.
    _fields_ = (("tensor", _DlTensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class DlpackImages:
    """What shows ``__dlpack__``: asked for with a stream, it lets that stream wait for its own, as torch does."""

    def __init__(self, library: ForeignLibrary, pointer: int, shape: tuple[int, ...]) -> None:
        self.library, self.pointer, self.shape = library, pointer, shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        if stream is not None and stream != -1:
            with self.library.device.attached():
                self.library.device.wait_for(stream, self.library.stream)
        sizes = (ctypes.c_int64 * len(self.shape))(*self.shape)
        managed = _Managed(_DlTensor(self.pointer, 2, 0, len(self.shape), 2, 32, 1, sizes, None, 0), None, None)
        self.held = (managed, sizes)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(managed), b"dltensor", None)

"""Arrays of other libraries without a copy: ``__cuda_array_interface__`` and ``__dlpack__``."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import RequestError

__all__ = ["DeviceImages", "device_images", "host_array"]

_DL_CPU, _DL_CUDA, _DL_CUDA_HOST = 1, 2, 3
_DL_FLOAT = 2


@dataclass(frozen=True)
class DeviceImages:
    """Images in GPU memory.

    Attributes:
        pointer: Address of the first value.
        shape: [batch, channels, height, width].
        owner: Keeps the memory alive.
        stream: Stream whose work must be done before the memory is read; None when nothing needs waiting for.
    """

    pointer: int
    shape: tuple[int, ...]
    owner: Any
    stream: int | None = None

    def __len__(self) -> int:
        return self.shape[0]


class _DlTensor(ctypes.Structure):
    # DLTensor of dlpack.h, first member of every managed tensor of the unversioned kind.
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def host_array(images: Any) -> NDArray[Any] | None:
    """Return a host array that shares memory with ``images``; None when it is no host array."""
    if isinstance(images, np.ndarray):
        return images
    if _dlpack_device(images) in (_DL_CPU, _DL_CUDA_HOST):
        return np.from_dlpack(images)
    return None


def device_images(images: Any, stream: int) -> DeviceImages | None:
    """Return images in GPU memory; None when they are not there.

    Args:
        images: Anything with ``__cuda_array_interface__``, or ``__dlpack__`` on a CUDA device.
        stream: Our stream; a ``__dlpack__`` producer makes it wait for its own work.

    Raises:
        RequestError: They are not float32, or not contiguous.
    """
    interface = getattr(images, "__cuda_array_interface__", None)
    if interface is not None:
        shape = tuple(interface["shape"])
        _check(interface["typestr"] == "<f4", interface["typestr"], interface.get("strides"), shape)
        return DeviceImages(int(interface["data"][0]), shape, images, interface.get("stream"))
    if _dlpack_device(images) != _DL_CUDA:
        return None
    capsule = images.__dlpack__(stream=stream)
    tensor = read_capsule(capsule)
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(4 * step for step in tensor.strides[: tensor.ndim]) if tensor.strides else None
    kind = "<f4" if (tensor.code, tensor.bits, tensor.lanes) == (_DL_FLOAT, 32, 1) else f"{tensor.bits} bits"
    _check(kind == "<f4", kind, strides, shape)
    return DeviceImages(int(tensor.data or 0) + tensor.byte_offset, shape, capsule)


def read_capsule(capsule: Any) -> _DlTensor:
    """Return the tensor that an unversioned DLPack capsule describes; the capsule keeps owning it."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return _DlTensor.from_address(get_pointer(capsule, b"dltensor"))


def _dlpack_device(images: Any) -> int | None:
    query = getattr(images, "__dlpack_device__", None)
    return None if query is None else int(query()[0])


def _check(is_float32: bool, kind: str, strides: Any, shape: tuple[int, ...]) -> None:
    expected: list[int] = []
    size = 4
    for length in reversed(shape):
        expected.insert(0, size)
        size *= length
    if not is_float32:
        raise RequestError(f"The 'images' parameter must be float32. Got {kind} on the GPU instead.")
    if strides is not None and tuple(strides) != tuple(expected):
        raise RequestError(
            "The 'images' parameter must be contiguous on the GPU. "
            f"Got strides {tuple(strides)} bytes, expected {tuple(expected)}: call .contiguous() first."
        )

"""Arrays of other libraries without a copy: ``__dlpack__``, and ``__cuda_array_interface__`` of those without it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import RequestError

__all__ = ["DeviceImages", "device_images", "host_array"]

_DL_CPU, _DL_CUDA, _DL_CUDA_HOST, _DL_CUDA_MANAGED = 1, 2, 3, 13
# Per type of images: its kind and bits in DLPack, its name in __cuda_array_interface__, its bytes.
_TYPES = {"float32": (2, 32, "<f4", 4), "uint8": (1, 8, "|u1", 1)}

# CU_STREAM_LEGACY: where a library works that names no stream.
LEGACY_STREAM = 1


@dataclass(frozen=True)
class DeviceImages:
    """Images in GPU memory.

    Attributes:
        pointer: Address of the first value.
        shape: [batch, channels, height, width].
        owner: Keeps the memory alive.
        stream: Stream whose work must be done before the memory is read.
    """

    pointer: int
    shape: tuple[int, ...]
    owner: Any
    stream: int

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
    """Return a host array that shares memory with ``images``; None when it is not a host array."""
    if isinstance(images, np.ndarray):
        return images
    device = _dlpack_device(images)
    if device is not None and device[0] in (_DL_CPU, _DL_CUDA_HOST):
        return np.from_dlpack(images)
    return None


def device_images(images: Any, intake: int, index: int, dtype: str = "float32") -> DeviceImages | None:
    """Return images in GPU memory; None when they are not there.

    Args:
        images: Anything with ``__dlpack__`` on a CUDA device, or ``__cuda_array_interface__``.
        intake: A stream of ours, which the producer of a DLPack tensor makes wait for its own work.
        index: Our GPU.
        dtype: What the engines take, ``float32`` or ``uint8``.

    Raises:
        RequestError: They are of another type, not contiguous, on another GPU, or not handed over by their library.
    """
    device = _dlpack_device(images)
    if device is not None and device[0] not in (_DL_CUDA, _DL_CUDA_MANAGED):
        return None
    if device is not None:
        return _from_dlpack(images, device[1], intake, index, dtype)
    interface = getattr(images, "__cuda_array_interface__", None)
    if interface is None:
        return None
    shape = tuple(interface["shape"])
    is_right = interface["typestr"] == _TYPES[dtype][2]
    _check(is_right, dtype, interface["typestr"], interface.get("strides"), shape)
    # Below version 3 the interface has no stream; None promises in version 3 that nothing needs waiting for, which
    # libraries also say of work that they gave the legacy stream. An event there costs a microsecond.
    stream = interface.get("stream") if interface.get("version", 0) >= 3 else None
    return DeviceImages(int(interface["data"][0]), shape, images, LEGACY_STREAM if stream is None else int(stream))


def _from_dlpack(images: Any, gpu: int, intake: int, index: int, dtype: str) -> DeviceImages:
    if gpu != index:
        raise RequestError(
            f"The 'images' parameter must lie on GPU {index}, where the engines are. Got images on GPU {gpu} instead."
        )
    try:
        capsule = images.__dlpack__(stream=intake)
    except (BufferError, RuntimeError, TypeError) as error:
        words = " ".join(str(error).split())
        raise RequestError(f"The 'images' parameter cannot be taken from its library: {words}") from error
    tensor = read_capsule(capsule)
    shape = tuple(tensor.shape[: tensor.ndim])
    code, bits, _, size = _TYPES[dtype]
    strides = tuple(size * step for step in tensor.strides[: tensor.ndim]) if tensor.strides else None
    is_right = (tensor.code, tensor.bits, tensor.lanes) == (code, bits, 1)
    _check(is_right, dtype, f"{tensor.bits} bits", strides, shape)
    return DeviceImages(int(tensor.data or 0) + tensor.byte_offset, shape, capsule, intake)


def read_capsule(capsule: Any) -> _DlTensor:
    """Return the tensor that an unversioned DLPack capsule describes; the capsule keeps owning it."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return _DlTensor.from_address(get_pointer(capsule, b"dltensor"))


def _dlpack_device(images: Any) -> tuple[int, int] | None:
    query = getattr(images, "__dlpack_device__", None)
    if query is None:
        return None
    kind, index = query()
    return int(kind), int(index)


def _check(is_right: bool, dtype: str, kind: str, strides: Any, shape: tuple[int, ...]) -> None:
    expected: list[int] = []
    size = _TYPES[dtype][3]
    for length in reversed(shape):
        expected.insert(0, size)
        size *= length
    if not is_right:
        raise RequestError(f"The 'images' parameter must be {dtype}. Got {kind} on the GPU instead.")
    if strides is not None and tuple(strides) != tuple(expected):
        raise RequestError(
            "The 'images' parameter must be contiguous on the GPU. "
            f"Got strides {tuple(strides)} bytes, expected {tuple(expected)}: call .contiguous() first."
        )

"""Arrays of other libraries: host memory through DLPack, GPU memory through a capsule's own fields."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_bundles import SmallBundle, images_of

from tocom.errors import RequestError
from tocom.runtime import Runtime
from tocom.runtime.backends.arrays import device_images, host_array, read_capsule


class Foreign:
    """What another library's array shows: DLPack alone. The device it claims may be changed."""

    def __init__(self, array: np.ndarray, device: int = 1) -> None:
        self.array, self.device, self.streams = array, device, []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, *, stream: int | None = None, **others: Any) -> Any:
        self.streams.append(stream)
        return self.array.__dlpack__()


def test_host_memory_of_others_is_shared_not_copied(small_bundle: SmallBundle) -> None:
    images = images_of(2)
    shared = host_array(Foreign(images))
    assert shared is not None
    assert np.shares_memory(shared, images)
    assert host_array(images) is images
    assert host_array([1.0]) is None
    with Runtime.open(small_bundle.path) as runtime:
        logits = runtime.infer(Foreign(images), degree=4).outputs["logits"]  # type: ignore[arg-type]
    np.testing.assert_allclose(logits, small_bundle.reference(images, 4), atol=1e-4)


def test_torch_tensors_are_taken(small_bundle: SmallBundle) -> None:
    torch = pytest.importorskip("torch")
    images = images_of(1)
    with Runtime.open(small_bundle.path) as runtime:
        logits = runtime.infer(torch.from_numpy(images), degree=0).outputs["logits"]
    np.testing.assert_allclose(logits, small_bundle.reference(images, 0), atol=1e-4)


def test_a_capsule_says_where_its_memory_lies() -> None:
    images = images_of(3)[1:]
    capsule = images.__dlpack__()  # owns what is read below
    tensor = read_capsule(capsule)
    assert (tensor.data or 0) + tensor.byte_offset == images.ctypes.data
    assert tuple(tensor.shape[: tensor.ndim]) == images.shape
    assert (tensor.code, tensor.bits, tensor.lanes) == (2, 32, 1)


def test_gpu_memory_through_dlpack_waits_for_the_producer_and_is_checked() -> None:
    images = images_of(2)
    on_gpu = Foreign(images, device=2)
    found = device_images(on_gpu, 77, 0)
    assert found is not None
    assert (found.pointer, found.shape, len(found)) == (images.ctypes.data, images.shape, 2)
    assert on_gpu.streams == [found.stream] == [77]
    with pytest.raises(RequestError, match="must be float32"):
        device_images(Foreign(images.astype(np.float64), device=2), 77, 0)
    with pytest.raises(RequestError, match="must be contiguous"):
        device_images(Foreign(images.transpose(0, 1, 3, 2), device=2), 77, 0)
    assert device_images(Foreign(images), 77, 0) is None
    pixels = device_images(Foreign(images.astype(np.uint8), device=2), 77, 0, "uint8")
    assert pixels is not None
    assert pixels.shape == images.shape
    with pytest.raises(RequestError, match=r"must be uint8\. Got 32 bits"):
        device_images(on_gpu, 77, 0, "uint8")
    with pytest.raises(RequestError, match="must lie on GPU 1"):
        device_images(on_gpu, 77, 1)


def test_gpu_images_are_refused_by_a_cpu_backend(small_bundle: SmallBundle) -> None:
    with Runtime.open(small_bundle.path) as runtime, pytest.raises(RequestError, match="host memory"):
        runtime.infer(Foreign(images_of(1), device=2))  # type: ignore[arg-type]

"""The host's driver, a scripted TensorRT over it, a bundle, and backends that are closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from host_cuda import HostCuda
from scripted_engines import (
    ScriptedTensorRt,
)
from small_bundles import SmallBundle, write_small_bundle

from tocom.formats.bundle import Bundle
from tocom.runtime.backends.tensorrt.backend import TensorRtBackend
from tocom.runtime.backends.tensorrt.device.libcuda import LibcudaDevice


@pytest.fixture
def cuda() -> HostCuda:
    return HostCuda()


@pytest.fixture
def trt(cuda: HostCuda) -> ScriptedTensorRt:
    return ScriptedTensorRt(cuda)


@pytest.fixture
def bundle(tmp_path: Path) -> SmallBundle:
    return write_small_bundle(tmp_path / "bundle")


@pytest.fixture
def opened(bundle: SmallBundle, trt: ScriptedTensorRt) -> Iterator[Callable[[], TensorRtBackend]]:
    backends = []

    def make() -> TensorRtBackend:
        device = LibcudaDevice(path=trt.cuda.path)
        backends.append(TensorRtBackend(Bundle(bundle.path), name="tensorrt", trt=trt, device=device))
        return backends[-1]

    yield make
    for backend in backends:
        backend.close()

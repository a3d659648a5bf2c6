from __future__ import annotations

import shutil

import pytest
from host_kernels import HostKernels, compile_host_kernels


@pytest.fixture(scope="session")
def host_kernels(tmp_path_factory: pytest.TempPathFactory) -> HostKernels:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return HostKernels(compile_host_kernels(tmp_path_factory.mktemp("host") / "libtocom_host.so"))

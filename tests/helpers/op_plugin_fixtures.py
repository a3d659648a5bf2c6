"""TensorRT-RTX and the op plugin library for tests.

The library is compiled for one architecture, once, and kept in pytest's cache by its content.
"""

from __future__ import annotations

import pytest

from tocom.errors import EngineError
from tocom.export.engines.backend import find_backend
from tocom.export.op_plugin.library import OpPluginLibrary, build_library

ARCHITECTURE = 89


@pytest.fixture(scope="session")
def op_plugin_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    cache = getattr(request.config, "cache", None)
    return cache.mkdir("op-plugin") if cache is not None else tmp_path_factory.mktemp("op-plugin")


@pytest.fixture(scope="session")
def op_plugin(op_plugin_cache) -> OpPluginLibrary:
    """Skip where nothing compiles CUDA: what these tests need is in the extra tocom[plugins] and the CUDA toolkit."""
    try:
        return build_library(architectures=[ARCHITECTURE], cache=op_plugin_cache)
    except EngineError as error:
        if "No usable nvcc" in str(error) or "No TensorRT headers" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture
def rtx():
    """TensorRT-RTX, as the extra tocom[rtx] installs it."""
    try:
        return find_backend("tensorrt-rtx")
    except EngineError as error:
        pytest.skip(str(error))

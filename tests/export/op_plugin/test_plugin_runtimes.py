"""One process, several registries: each runtime and builder loads the op plugin library for itself, for real."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tocom.export.engines.backend import find_backend, link_libraries

LOAD = """
import ctypes, importlib, sys
module, library, *preload = sys.argv[1:]
for name in preload:
    ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
trt = importlib.import_module(module)
logger = trt.Logger(trt.Logger.ERROR)
owners = [trt.Builder(logger), trt.Runtime(logger), trt.Runtime(logger)]
for owner in owners:
    registry = owner.get_plugin_registry()
    assert registry.load_library(library) is not None
    assert registry.get_creator("TokenMerge", "1", "tocom") is not None
    assert registry.get_creator("TokenPrune", "1", "tocom") is not None
del registry, owner
owners.pop()
again = trt.Runtime(logger)
assert again.get_plugin_registry().load_library(library) is not None
print("loaded")
"""


@pytest.mark.usefixtures("rtx")
def test_a_builder_and_two_runtimes_load_the_library_in_one_process(op_plugin, tmp_path):
    backend = find_backend("tensorrt-rtx")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, backend.module, str(op_plugin.path), *map(str, backend.libraries)],
        capture_output=True,
        text=True,
        env=link_libraries(backend, tmp_path),
    )
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr

"""The library registers its ops by itself where it is asked to: for programs that open it and do no more.

TensorRT itself is not at hand; ``testing/registry_harness.cpp`` has its interface and its file name.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from kernel_cases import SOURCES

from tocom.export.op_plugin.toolchain import find_headers, find_toolkit
from tocom.formats.engine import SELF_REGISTER

OPEN = """
import ctypes, sys
tensorrt, library, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
if tensorrt:
    stands_for_tensorrt = ctypes.CDLL(tensorrt)  # for itself alone, as Triton opens its backends
    stands_for_tensorrt.tocom_registered.restype = ctypes.c_char_p
for _ in range(times):
    opened = ctypes.CDLL(library)
    opened.getCreators
if tensorrt:
    print(stands_for_tensorrt.tocom_registered().decode(), end="")
"""
EVERY = [f"tocom::{name} 1" for name in ("TokenMerge", "TokenPrune", "TokenMergeMapped", "TokenPruneMapped")]


@pytest.fixture(scope="module")
def tensorrt(op_plugin, tmp_path_factory):
    toolkit, headers = find_toolkit(), find_headers()
    name = f"libnvinfer.so.{headers.version[0]}"
    path = tmp_path_factory.mktemp("registration") / name
    flags = ["-std=c++17", "-shared", "-cudart=none", f"-Xlinker=-soname={name}"]
    flags += ["-Xcompiler=-fPIC,-Wall,-Wextra,-Werror,-Wno-deprecated-declarations"]
    folders = [f"-isystem={folder}" for folder in (headers.include, *toolkit.include)]
    source = str(SOURCES / "testing" / "registry_harness.cpp")
    subprocess.run([str(toolkit.nvcc), *flags, *folders, source, "-o", str(path)], check=True)
    return path


def opened(library, tensorrt, *, asked: bool, times: int = 1) -> tuple[list[str], str]:
    """Open the library in a process of its own; return what was registered, and what was said."""
    environment = {key: value for key, value in os.environ.items() if key != SELF_REGISTER}
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(tensorrt or ""), str(library), str(times)],
        capture_output=True,
        text=True,
        env={**environment, SELF_REGISTER: "1"} if asked else environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_it_registers_when_asked(op_plugin, tensorrt):
    assert opened(op_plugin.path, tensorrt, asked=True, times=2) == (EVERY, "")


def test_it_registers_nothing_unasked(op_plugin, tensorrt):
    assert opened(op_plugin.path, tensorrt, asked=False) == ([], "")


def test_without_tensorrt_it_says_that_nothing_is_registered(op_plugin):
    _, said = opened(op_plugin.path, None, asked=True)
    assert f"{SELF_REGISTER} is set, but no TensorRT {op_plugin.tensorrt[0]} is loaded yet" in said


def test_a_name_that_is_taken_is_said(op_plugin, tensorrt, tmp_path):
    twin = tmp_path / "twin.so"
    twin.write_bytes(op_plugin.path.read_bytes())
    code = OPEN.replace("opened.getCreators", f"ctypes.CDLL({str(twin)!r})")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tensorrt), str(op_plugin.path), "1"],
        capture_output=True,
        text=True,
        env={**os.environ, SELF_REGISTER: "1"},
    )
    assert done.stdout.splitlines() == EVERY
    assert "refuses to register an op plugin" in done.stderr

"""The op plugin library for Jetson, cross-compiled and linked with Debian's compiler; nothing of it is run.

`apt-get install g++-aarch64-linux-gnu` and nvcc bring what it needs. Orin is compute capability 8.7.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from kernel_cases import SOURCES

from tocom.errors import EngineError
from tocom.export.op_plugin.toolchain import Headers, Toolkit, find_headers, find_toolkit

PREFIX = "aarch64-linux-gnu-"
HOST_SOURCES = (
    "entry_points.cpp",
    "common/errors.cpp",
    "token_merge/token_merge_plugin.cpp",
    "token_prune/token_prune_plugin.cpp",
)
KERNELS = ("token_merge/match_kernel.cu", "token_merge/token_merge_kernel.cu", "token_prune/token_prune_kernel.cu")
ORIN = 87

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tools() -> tuple[Toolkit, Headers]:
    if shutil.which(f"{PREFIX}g++") is None:
        pytest.skip(f"{PREFIX}g++ is not installed (Debian: g++-aarch64-linux-gnu)")
    try:
        toolkit, headers = find_toolkit(), find_headers()
    except EngineError as error:
        pytest.skip(str(error))
    if ORIN not in toolkit.architectures:
        pytest.skip(f"nvcc {toolkit.version} does not know sm_{ORIN}")
    return toolkit, headers


def cuda_include(toolkit: Toolkit) -> list[str]:
    """Return the options that name the toolkit's own include folder: the cross compiler does not search it."""
    done = subprocess.run([toolkit.nvcc, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True)
    line = next(line for line in done.stderr.splitlines() if line.startswith("#$ INCLUDES="))
    found = [part.strip('"').removeprefix("-I") for part in line.partition("=")[2].split()]
    return [f"-I{folder}" for folder in (*found, *toolkit.include) if Path(folder).is_dir()]


@pytest.fixture(scope="module")
def library(tools, tmp_path_factory) -> Path:
    toolkit, headers = tools
    folder = tmp_path_factory.mktemp("aarch64")
    include = [f"-I{SOURCES}", *cuda_include(toolkit)]
    objects = [folder / f"{Path(name).name}.o" for name in (*HOST_SOURCES, *KERNELS)]
    for name, output in zip(HOST_SOURCES, objects, strict=False):
        flags = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
        flags += [f'-DTOCOM_ARCHITECTURES="{ORIN}"', "-isystem", str(headers.include)]
        run(f"{PREFIX}g++", *flags, *include, "-c", SOURCES / name, "-o", output)
    for name, output in zip(KERNELS, objects[len(HOST_SOURCES) :], strict=True):
        flags = ["-ccbin", f"{PREFIX}g++", "-std=c++17", "-O2", f"-gencode=arch=compute_{ORIN},code=sm_{ORIN}"]
        flags += ["-Xcompiler=-fPIC,-fvisibility=hidden"]
        run(toolkit.nvcc, *flags, *include, "-c", SOURCES / name, "-o", output)
    # The CUDA runtime for aarch64 is not at hand: its symbols stay open, and a test names what else may.
    linked = folder / "libtocom_op_plugin.so"
    script = f"-Wl,--version-script={SOURCES / 'exports.map'}"
    run(f"{PREFIX}g++", "-shared", script, *objects, "-o", linked)
    return linked


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def symbols(library: Path, which: str) -> set[str]:
    lines = run(f"{PREFIX}nm", "-D", which, library).splitlines()
    return {line.split()[-1].partition("@")[0] for line in lines}


def test_it_is_for_arm_and_exports_the_entry_points_alone(library):
    assert "AArch64" in run(f"{PREFIX}readelf", "-h", library)
    assert symbols(library, "--defined-only") >= {"getCreators", "setLoggerFinder"}
    functions = {name for name in symbols(library, "--defined-only") if not name.startswith(("_Z", "TOCOM"))}
    assert functions == {"getCreators", "setLoggerFinder"}


def test_it_needs_the_cuda_runtime_and_the_standard_libraries_alone(library):
    needed = run(f"{PREFIX}readelf", "-d", library)
    assert {line.partition("[")[2].rstrip("]") for line in needed.splitlines() if "(NEEDED)" in line} <= {
        "libstdc++.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "libc.so.6",
        "ld-linux-aarch64.so.1",
    }
    versioned = run(f"{PREFIX}nm", "-D", "--undefined-only", library).splitlines()
    without = {line.split()[-1] for line in versioned if "@" not in line}
    weak = {"__cxa_finalize", "__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
    assert {name for name in without - weak if not name.startswith(("cuda", "__cuda"))} == set()


def test_it_holds_code_for_orin(library, tools):
    inspect = tools[0].nvcc.resolve().with_name("cuobjdump")
    if not inspect.is_file():
        # The section is there in any case; only cuobjdump tells its architecture.
        assert ".nv_fatbin" in run(f"{PREFIX}readelf", "-S", "-W", library)
        return
    assert f"sm_{ORIN}" in run(inspect, "--list-elf", library)

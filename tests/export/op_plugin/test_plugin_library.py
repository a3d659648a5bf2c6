"""The compiled library: what it exports, what it says of itself, how it is cached, and what is refused."""

from __future__ import annotations

import dataclasses
import platform
import shutil
import subprocess

import pytest
from kernel_cases import SOURCES
from op_plugin_fixtures import ARCHITECTURE

from tocom.errors import EngineError, RequestError
from tocom.export.op_plugin import library as plugin_library
from tocom.export.op_plugin.library import LIBRARY_NAME, build_library, check_library, read_library
from tocom.export.op_plugin.toolchain import find_toolkit, select_architectures


def test_only_the_entry_points_are_exported(op_plugin):
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(op_plugin.path)], capture_output=True, text=True, check=True
    ).stdout
    assert sorted(line.split()[-1] for line in listed.splitlines()) == ["getCreators", "setLoggerFinder"]


def test_nothing_of_tensorrt_or_cuda_is_linked(op_plugin):
    needed = subprocess.run(["ldd", str(op_plugin.path)], capture_output=True, text=True, check=True).stdout
    for library in ("nvinfer", "tensorrt", "cudart", "cuda.so"):
        assert library not in needed


def test_the_file_says_what_it_is_for(op_plugin):
    assert op_plugin.version == 1
    assert op_plugin.architectures == (ARCHITECTURE,)
    assert op_plugin.machine == platform.machine()
    assert op_plugin.tensorrt[0] >= 10
    assert op_plugin.cuda >= (12, 0)


def test_a_second_build_compiles_nothing(op_plugin, op_plugin_cache, monkeypatch):
    monkeypatch.setattr(plugin_library, "_compile", pytest.fail)
    lines = []
    again = build_library(architectures=[ARCHITECTURE], cache=op_plugin_cache, say=lines.append)
    assert again.build_seconds == 0
    assert again.sha256 == op_plugin.sha256
    assert [line.split(":")[0] for line in lines] == [
        lines[0].split(":")[0],
        lines[1].split(":")[0],
        "architectures",
        "cached",
    ]


def test_a_damaged_cache_is_rebuilt(op_plugin, tmp_path, monkeypatch):
    compiled = []

    def compile_again(toolkit, headers, architectures, output):
        compiled.append(architectures)
        shutil.copyfile(op_plugin.path, output)

    monkeypatch.setattr(plugin_library, "_compile", compile_again)
    first = build_library(architectures=[ARCHITECTURE], cache=tmp_path)
    first.path.write_bytes(first.path.read_bytes()[:-100])
    second = build_library(architectures=[ARCHITECTURE], cache=tmp_path)
    assert second.sha256 == op_plugin.sha256
    assert len(compiled) == 2


def test_a_compile_that_dies_leaves_nothing(tmp_path, monkeypatch):
    def die(toolkit, headers, architectures, output):
        output.write_bytes(b"half a library")
        raise KeyboardInterrupt

    monkeypatch.setattr(plugin_library, "_compile", die)
    with pytest.raises(KeyboardInterrupt):
        build_library(architectures=[ARCHITECTURE], cache=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_changed_source_architecture_or_header_changes_the_key(op_plugin, tmp_path, monkeypatch):
    monkeypatch.setattr(
        plugin_library, "_compile", lambda toolkit, headers, wanted, output: shutil.copyfile(op_plugin.path, output)
    )
    copy = tmp_path / "plugins"
    shutil.copytree(SOURCES, copy)
    monkeypatch.setattr(plugin_library, "SOURCES", copy)
    places = {build_library(architectures=[ARCHITECTURE], cache=tmp_path).path}
    places.add(build_library(architectures=[75], cache=tmp_path).path)
    (copy / "common" / "launch.h").write_text((copy / "common" / "launch.h").read_text() + "// changed\n")
    places.add(build_library(architectures=[ARCHITECTURE], cache=tmp_path).path)
    assert len(places) == 3
    # The tests' own sources are not a part of the library.
    (copy / "testing" / "host_harness.cpp").unlink()
    places.add(build_library(architectures=[ARCHITECTURE], cache=tmp_path).path)
    assert len(places) == 3


def test_a_compiler_error_is_one_readable_line(tmp_path, monkeypatch):
    copy = tmp_path / "plugins"
    shutil.copytree(SOURCES, copy)
    (copy / "common" / "errors.cpp").write_text("this is not a C++\n")
    monkeypatch.setattr(plugin_library, "SOURCES", copy)
    monkeypatch.setattr(plugin_library, "_UNITS", ("common/errors.cpp",))
    with pytest.raises(EngineError, match=r"common/errors.cpp ended with status .*--lowering native") as caught:
        build_library(architectures=[ARCHITECTURE], cache=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob(LIBRARY_NAME))


def test_an_architecture_that_nvcc_does_not_know(tmp_path):
    with pytest.raises(RequestError, match=r"'arch' parameter .* Got 13 instead"):
        build_library(architectures=[13], cache=tmp_path)


@pytest.mark.parametrize(
    ("changes", "capability", "message"),
    [
        ({"machine": "riscv"}, None, "is for riscv, this is"),
        ({"tensorrt": (11, 0, 0)}, None, r"headers of TensorRT 11.0.0; here it must be 10.x"),
        ({"architectures": (89, 90)}, (8, 7), r"holds code for 89, 90, this GPU has compute capability 8.7"),
    ],
)
def test_a_library_for_something_else_is_refused(op_plugin, changes, capability, message):
    with pytest.raises(EngineError, match=message) as caught:
        check_library(dataclasses.replace(op_plugin, **changes), tensorrt_major=10, compute_capability=capability)
    assert "tocom plugins build" in str(caught.value)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (12, 1)])
def test_code_or_ptx_serves_this_and_newer_gpus(op_plugin, capability):
    check_library(op_plugin, tensorrt_major=op_plugin.tensorrt[0], compute_capability=capability)


def test_files_that_are_no_library(tmp_path):
    with pytest.raises(EngineError, match="cannot be read"):
        read_library(tmp_path / "missing.so")
    other = tmp_path / "other.so"
    other.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(EngineError, match="not an op plugin library of tocom"):
        read_library(other)


# 70 s on two cores the first time; afterwards the cache in .pytest_cache answers.
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_default_architectures_compile(op_plugin, op_plugin_cache):
    wanted = select_architectures(find_toolkit())
    library = build_library(cache=op_plugin_cache)
    assert library.architectures == wanted
    assert set(wanted) >= {75, 80, 86, 87, 89, 90}

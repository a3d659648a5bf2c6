"""Finding nvcc and TensorRT's headers, and what is said where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tocom.errors import EngineError, RequestError
from tocom.export.op_plugin import toolchain as plugin_toolchain
from tocom.export.op_plugin.toolchain import (
    find_headers,
    find_toolkit,
    select_architectures,
)

CODES_13 = "sm_75 sm_80 sm_86 sm_87 sm_88 sm_89 sm_90 sm_100 sm_103 sm_110 sm_120 sm_121"
CODES_12_9 = "sm_50 sm_75 sm_80 sm_86 sm_87 sm_89 sm_90 sm_90a sm_100 sm_101 sm_103 sm_120 sm_121"
CODES_12_6 = "sm_50 sm_75 sm_80 sm_86 sm_87 sm_89 sm_90 sm_90a"


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine where nothing is installed."""
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "TENSORRT_INCLUDE_DIR", "TENSORRT_ROOT", "TENSORRT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(plugin_toolchain, "package_folders", lambda name: [])
    monkeypatch.setattr(plugin_toolchain, "_SYSTEM_NVCC", tmp_path / "no" / "nvcc")
    monkeypatch.setattr(plugin_toolchain, "_SYSTEM_INCLUDES", (tmp_path / "no" / "include",))


def nvcc(folder: Path, version: str = "13.0", codes: str = CODES_13) -> Path:
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    lines = "\\n".join(codes.split())
    path.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --version ]; then echo "Cuda compilation tools, release {version}, V{version}.1"\n'
        f"else printf '{lines}\\n'; fi\n"
    )
    path.chmod(0o755)
    return path


def headers(folder: Path, version: tuple[int, int, int], *, through_macro: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / "NvInferRuntime.h").touch()
    lines = []
    for name, number in zip(("MAJOR", "MINOR", "PATCH"), version, strict=True):
        value = str(number)
        if through_macro:
            lines.append(f"#define TRT_{name}_ENTERPRISE {number}")
            value = f"TRT_{name}_ENTERPRISE"
        lines.append(f"#define NV_TENSORRT_{name} {value} //!< text")
    (folder / "NvInferVersion.h").write_text("\n".join(lines))
    return folder


def test_no_nvcc(bare):
    with pytest.raises(EngineError, match=r"No usable nvcc found. Looked at: .*--lowering native"):
        find_toolkit()


def test_an_nvcc_that_is_not_there_or_does_not_run(bare, tmp_path):
    with pytest.raises(EngineError, match="not there"):
        find_toolkit(tmp_path / "nvcc")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(EngineError, match="exit status 3"):
        find_toolkit(broken)


def test_an_nvcc_that_is_too_old(bare, tmp_path):
    with pytest.raises(EngineError, match=r"CUDA 11.8 is older than 12.0"):
        find_toolkit(nvcc(tmp_path, "11.8"))


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_nvcc_from_the_environment(bare, monkeypatch, tmp_path, variable):
    path = nvcc(tmp_path / "cuda")
    monkeypatch.setenv(variable, str(tmp_path / "cuda"))
    found = find_toolkit()
    assert (found.nvcc, found.version, found.found) == (path, (13, 0), f"environment {variable}")


def test_nvcc_from_wheels_of_both_layouts(bare, monkeypatch, tmp_path):
    monkeypatch.setattr(plugin_toolchain, "package_folders", lambda name: [tmp_path / name])
    old = nvcc(tmp_path / "nvidia" / "cuda_nvcc", "12.9", CODES_12_9)
    include = tmp_path / "nvidia" / "cuda_runtime" / "include"
    include.mkdir(parents=True)
    (include / "cuda_runtime_api.h").touch()
    found = find_toolkit()
    assert found.nvcc == old
    assert found.include == (include,)
    new = nvcc(tmp_path / "nvidia" / "cu13")
    assert find_toolkit().nvcc == new


@pytest.mark.parametrize(
    ("version", "codes", "expected"),
    [
        ("13.0", CODES_13, (75, 80, 86, 87, 89, 90, 100, 110, 120, 121)),
        ("12.9", CODES_12_9, (75, 80, 86, 87, 89, 90, 100, 101, 120, 121)),
        ("12.6", CODES_12_6, (75, 80, 86, 87, 89, 90)),
    ],
)
def test_default_architectures(bare, tmp_path, version, codes, expected):
    toolkit = find_toolkit(nvcc(tmp_path, version, codes))
    assert select_architectures(toolkit) == expected
    assert select_architectures(toolkit, [90, 87, 90]) == (87, 90)
    with pytest.raises(RequestError, match="Got none instead"):
        select_architectures(toolkit, [])


def test_no_headers(bare):
    with pytest.raises(EngineError, match=r"No TensorRT headers found. Looked in: .*--tensorrt-include"):
        find_headers()


@pytest.mark.parametrize("through_macro", [False, True])
def test_headers_from_the_environment(bare, monkeypatch, tmp_path, through_macro):
    folder = headers(tmp_path / "root" / "include", (10, 3, 0), through_macro=through_macro)
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path / "root"))
    found = find_headers()
    assert (found.include, found.version) == (folder, (10, 3, 0))


@pytest.mark.parametrize("version", [(8, 6, 1), (10, 2, 0), (12, 0, 0)])
def test_headers_of_an_unsupported_version(bare, tmp_path, version):
    with pytest.raises(EngineError, match=r"supports 10.3 to 11.x"):
        find_headers(headers(tmp_path / "include", version))


def test_headers_without_a_version(bare, tmp_path):
    folder = headers(tmp_path / "include", (10, 3, 0))
    (folder / "NvInferVersion.h").write_text("")
    with pytest.raises(EngineError, match="names no version"):
        find_headers(folder)


def test_headers_that_were_asked_for_are_the_only_ones(tmp_path):
    with pytest.raises(EngineError, match=str(tmp_path)):
        find_headers(tmp_path)

"""What compiles the op plugin library: nvcc and TensorRT's headers, found on the system or in wheels.

Nothing found here is imported: wheels are read as files. Every search says where it looked.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tocom.errors import EngineError, RequestError, first_line
from tocom.system.dependencies import package_folders

__all__ = ["Headers", "Toolkit", "find_headers", "find_toolkit", "select_architectures"]

# What ViTs on the edge run on, and the cards of those who build for it. Thor is 101 in CUDA 12 and 110 from CUDA 13.
_ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 101, 110, 120, 121)
_OLDEST_CUDA = (12, 0)
_OLDEST_TENSORRT = (10, 3)
_NEWEST_TENSORRT_MAJOR = 11
_SYSTEM_NVCC = Path("/usr/local/cuda/bin/nvcc")
_SYSTEM_INCLUDES = (
    Path(f"/usr/include/{platform.machine()}-linux-gnu"),
    Path("/usr/include"),
    Path("/usr/local/tensorrt/include"),
)


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that was asked for its version.

    Attributes:
        nvcc: The compiler driver.
        version: Major and minor, such as (13, 0).
        build: The driver's full version text; part of the cache's key.
        architectures: Compute capabilities times ten that it compiles for.
        include: Folders that nvcc does not search by itself.
        libraries: Folders that the linker does not search by itself.
        found: Where it was found, for people.
    """

    nvcc: Path
    version: tuple[int, int]
    build: str
    architectures: tuple[int, ...]
    include: tuple[Path, ...]
    libraries: tuple[Path, ...]
    found: str


@dataclass(frozen=True)
class Headers:
    """TensorRT's headers: their folder, their version, and where they were found."""

    include: Path
    version: tuple[int, int, int]
    found: str


def find_toolkit(nvcc: Path | str | None = None) -> Toolkit:
    """Return the first CUDA toolkit that answers.

    Args:
        nvcc: The compiler to take, or None to search.

    Raises:
        EngineError: None is found, or the one named does not run or is older than CUDA 12.
    """
    tried: list[str] = []
    for path, found in _nvcc_candidates(nvcc):
        if not path.is_file():
            tried.append(f"{path} (not there)")
            continue
        try:
            return _ask_toolkit(path, found)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            tried.append(f"{path} ({first_line(error)})")
    raise EngineError(
        f"No usable nvcc found. Looked at: {'; '.join(tried) or 'PATH'}. Install the CUDA toolkit (12.0 or newer), "
        "or the wheels nvidia-cuda-nvcc, nvidia-cuda-crt, nvidia-nvvm, nvidia-cuda-runtime and nvidia-cuda-cccl, or "
        "pass --nvcc. Engines can be built without it: --lowering native."
    )


def find_headers(include: Path | str | None = None) -> Headers:
    """Return the first folder with TensorRT's headers.

    Args:
        include: The folder to take, or None to search.

    Raises:
        EngineError: None is found, or their version is not supported.
    """
    tried: list[str] = []
    for folder, found in _header_candidates(include):
        if not (folder / "NvInferRuntime.h").is_file() or not (folder / "NvInferVersion.h").is_file():
            tried.append(str(folder))
            continue
        version = _header_version(folder)
        if version < _OLDEST_TENSORRT or version[0] > _NEWEST_TENSORRT_MAJOR:
            raise EngineError(
                f"The headers in {folder} ({found}) are of TensorRT {'.'.join(map(str, version))}; the op plugin "
                f"library supports {'.'.join(map(str, _OLDEST_TENSORRT))} to {_NEWEST_TENSORRT_MAJOR}.x. "
                "Pass another folder with --tensorrt-include."
            )
        return Headers(folder, version, found)
    raise EngineError(
        f"No TensorRT headers found. Looked in: {', '.join(tried)}. Install libnvinfer-headers-dev (JetPack: "
        "libnvinfer-dev) or the extra tocom[plugins], or pass --tensorrt-include. Engines can be built without them: "
        "--lowering native."
    )


def select_architectures(toolkit: Toolkit, wanted: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the architectures to compile for, ascending and each once; without a wish the default ones it knows.

    Raises:
        RequestError: The toolkit does not know one of them.
    """
    if wanted is None:
        thor_elsewhere = 101 if toolkit.version >= (13, 0) else 110
        return tuple(a for a in _ARCHITECTURES if a in toolkit.architectures and a != thor_elsewhere)
    unknown = sorted(set(wanted) - set(toolkit.architectures))
    if unknown or not wanted:
        raise RequestError(
            f"The 'arch' parameter must name architectures that {toolkit.nvcc} knows: "
            f"{', '.join(map(str, toolkit.architectures))}. Got {', '.join(map(str, unknown)) or 'none'} instead."
        )
    return tuple(sorted(set(wanted)))


def _nvcc_candidates(nvcc: Path | str | None) -> Iterator[tuple[Path, str]]:
    if nvcc is not None:
        yield Path(nvcc), "asked for"
        return
    if chosen := os.environ.get("CUDACXX"):
        yield Path(shutil.which(chosen) or chosen), "environment CUDACXX"
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if root := os.environ.get(variable):
            yield Path(root) / "bin" / "nvcc", f"environment {variable}"
    if on_path := shutil.which("nvcc"):
        yield Path(on_path), "PATH"
    yield _SYSTEM_NVCC, "system"
    for folder in package_folders("nvidia"):
        for component in (*sorted(folder.glob("cu[0-9]*"), reverse=True), folder / "cuda_nvcc"):
            if (component / "bin" / "nvcc").is_file():
                yield component / "bin" / "nvcc", "wheel nvidia-cuda-nvcc"


def _ask_toolkit(nvcc: Path, found: str) -> Toolkit:
    build = _output([str(nvcc), "--version"])
    release = re.search(r"release (\d+)\.(\d+)", build)
    if release is None:
        raise ValueError("its --version names no release")
    version = (int(release[1]), int(release[2]))
    if version < _OLDEST_CUDA:
        raise ValueError(f"CUDA {version[0]}.{version[1]} is older than 12.0")
    codes = re.findall(r"sm_(\d+)\s", _output([str(nvcc), "--list-gpu-code"]) + "\n")
    return Toolkit(
        nvcc=nvcc,
        version=version,
        build=" ".join(build.split()),
        architectures=tuple(sorted({int(code) for code in codes})),
        include=tuple(f for f in _toolkit_folders(nvcc, "include") if (f / "cuda_runtime_api.h").is_file()),
        libraries=tuple(f for f in _toolkit_folders(nvcc, "lib64", "lib") if f.is_dir()),
        found=found,
    )


def _toolkit_folders(nvcc: Path, *names: str) -> Iterator[Path]:
    root = nvcc.resolve().parent.parent
    for name in names:
        yield root / name
    # The wheels of CUDA 12 are one folder per component.
    for component in ("cuda_nvcc", "cuda_runtime", "cuda_cccl"):
        if root.name == "cuda_nvcc":
            yield from (root.parent / component / name for name in names)


def _header_candidates(include: Path | str | None) -> Iterator[tuple[Path, str]]:
    if include is not None:
        yield Path(include), "asked for"
        return
    if folder := os.environ.get("TENSORRT_INCLUDE_DIR"):
        yield Path(folder), "environment TENSORRT_INCLUDE_DIR"
    for variable in ("TENSORRT_ROOT", "TENSORRT_HOME"):
        if root := os.environ.get(variable):
            yield Path(root) / "include", f"environment {variable}"
    for system in _SYSTEM_INCLUDES:
        yield system, "system"
    for package in package_folders("kernel_lens"):
        yield package / "include" / "tensorrt", "wheel kernel-lens"


def _header_version(folder: Path) -> tuple[int, int, int]:
    text = (folder / "NvInferVersion.h").read_text(encoding="utf-8", errors="replace")
    values: dict[str, str] = dict(re.findall(r"#define\s+(\w+)\s+(\w+)", text))
    numbers: list[int] = []
    for part in ("MAJOR", "MINOR", "PATCH"):
        # Since 10.8 NV_TENSORRT_MAJOR is defined through another macro.
        value = values.get(f"NV_TENSORRT_{part}", "")
        value = values.get(value, value)
        if not value.isdigit():
            raise EngineError(f"{folder / 'NvInferVersion.h'} names no version. Pass another --tensorrt-include.")
        numbers.append(int(value))
    return numbers[0], numbers[1], numbers[2]


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

"""``tocom doctor``: what this machine can do, and what would make it do more."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tocom.cli.app import show, table_of
from tocom.errors import TocomError
from tocom.system.dependencies import installed, requirements
from tocom.version import __version__

__all__ = ["Finding", "diagnose", "doctor"]

_FREE_BYTES_WANTED = 10 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: Its name.
        ok: Whether the part of tocom that needs it can work.
        found: What was found.
        cure: What to do about it; empty when nothing.
    """

    what: str
    ok: bool
    found: str
    cure: str = ""


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Explain what this machine can do: packages, driver, compiler, power mode, disk. No missing extra is an error."""
    findings = diagnose()
    columns = ("", "what", "found", "to do")
    rows = [
        (Text("yes", "green") if each.ok else Text("no", "yellow"), each.what, each.found, each.cure)
        for each in findings
    ]
    table = table_of(columns, rows, title=f"tocom {__version__} on {platform.machine()}", left=columns)
    show([asdict(finding) for finding in findings] if as_json else table)


def diagnose() -> list[Finding]:
    """Look at this machine. Imports nothing heavy and changes nothing."""
    return [check() for check in _CHECKS]


def _python() -> Finding:
    return Finding("Python", True, platform.python_version())


def _packages(what: str, names: tuple[str, ...], extra: str) -> Callable[[], Finding]:
    def look() -> Finding:
        versions = {name: installed(name) for name in names}
        missing = [name for name, version in versions.items() if version is None]
        found = ", ".join(f"{name} {version}" for name, version in versions.items() if version) or "nothing"
        # Several extras may declare a package; they agree on its versions.
        declared = {each.package: each for each in requirements()}
        old = [
            declared[name].upgrade
            for name, version in versions.items()
            if version and name in declared and not declared[name].met_by(version)
        ]
        cures = [f"pip install 'tocom[{extra}]' (lacks {', '.join(missing)})"] if missing else []
        return Finding(what, not missing and not old, found, "; ".join([*cures, *old]))

    return look


def _driver() -> Finding:
    # The driver itself says it, without a subprocess: present with the kernel module, absent without.
    for note in (Path("/proc/driver/nvidia/version"), Path("/etc/nv_tegra_release")):
        if note.exists():
            return Finding("NVIDIA driver", True, note.read_text().splitlines()[0])
    return Finding(
        "NVIDIA driver", False, "none", "only ONNX Runtime on the CPU will serve; install a driver for a GPU"
    )


def _gpu() -> Finding:
    from tocom.runtime.backends.tensorrt.device.select import open_device

    try:
        device = open_device()
        try:
            described, (free, total) = device.describe(), device.memory()
        finally:
            device.close()
    except (TocomError, MemoryError) as error:
        return Finding("GPU", False, "none", str(error))
    return Finding(
        "GPU",
        True,
        f"{described['gpu']}, compute capability {described['compute_capability']}, CUDA {described['driver']} through "
        f"{device.library}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
    )


def _nvcc() -> Finding:
    from tocom.export.op_plugin.toolchain import find_toolkit

    return _for_op_plugins("nvcc", lambda: ((toolkit := find_toolkit()).version, toolkit.nvcc))


def _headers() -> Finding:
    from tocom.export.op_plugin.toolchain import find_headers

    return _for_op_plugins("TensorRT headers", lambda: ((headers := find_headers()).version, headers.include))


def _for_op_plugins(what: str, find: Callable[[], tuple[Sequence[int], Path]]) -> Finding:
    try:
        version, path = find()
    except TocomError as error:
        return Finding(what, False, "none", f"needed only to build the op plugin library: {error}")
    return Finding(what, True, f"{'.'.join(map(str, version))}: {path}")


def _op_plugin() -> Finding:
    from tocom.export.op_plugin.library import LIBRARY_NAME, read_library
    from tocom.system.cache import cache_folder

    found = []
    for path in sorted(cache_folder().glob(f"op-plugin/*/{LIBRARY_NAME}")):
        with contextlib.suppress(TocomError):
            library = read_library(path)
            versions = f"TensorRT {library.tensorrt[0]}, CUDA {library.cuda[0]}"
            found.append(f"{versions}, architectures {', '.join(map(str, library.architectures))}: {path}")
    if found:
        return Finding("op plugin library", True, "; ".join(found))
    cure = "'tocom build' makes it where nvcc and headers are, or before that: tocom plugins build"
    return Finding("op plugin library", False, "none built yet", cure)


def _references() -> Finding:
    packages = ("tensorrt", "tensorrt-rtx-cu13-bindings", "onnxruntime", "openvino")
    backends = [name for name in packages if installed(name) is not None]
    found = f"every bundle carries some; 'tocom check' compares here: {', '.join(backends) or 'nothing'}"
    return Finding(
        "reference answers", bool(backends), found, "export with --check-images FOLDER: real images find more errors"
    )


def _power_mode() -> Finding:
    from tocom.system.cpu import power_mode

    mode = power_mode()
    if mode is None:
        return Finding("power mode", True, "this system has none")
    slow = any(word in mode.lower() for word in ("powersave", "low-power", "conservative"))
    cure = "latencies will vary: set a fixed mode before calibrating (Jetson: nvpmodel -m 0, jetson_clocks)"
    return Finding("power mode", not slow, mode, cure if slow else "")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    ok = free >= _FREE_BYTES_WANTED
    cure = "" if ok else f"free at least {_FREE_BYTES_WANTED >> 30} GiB: torch and engines are large"
    return Finding("disk", ok, f"{free / 2**30:.1f} GiB free here", cure)


def _cpu() -> Finding:
    count = len(os.sched_getaffinity(0))
    return Finding("CPU", True, f"{count} usable")


_CHECKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _cpu,
    _disk,
    _packages("runtime on ONNX Runtime", ("numpy", "onnxruntime", "pillow"), "runtime"),
    _packages("runtime on OpenVINO", ("numpy", "openvino", "onnx", "pillow"), "openvino"),
    _packages("training", ("torch", "torchvision", "timm", "safetensors"), "train"),
    _packages("export", ("torch", "timm", "onnx", "onnxscript", "onnxruntime"), "export"),
    _packages("plots", ("matplotlib",), "plots"),
    _packages("TensorRT", ("tensorrt",), "tensorrt"),
    _packages("TensorRT-RTX", ("tensorrt-rtx-cu13-bindings", "onnxruntime-ep-nv-tensorrt-rtx-cu13"), "rtx"),
    _driver,
    _gpu,
    _nvcc,
    _headers,
    _op_plugin,
    _references,
    _power_mode,
)

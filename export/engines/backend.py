"""Which TensorRT builds: found from its files and metadata, without importing it.

Only the child process imports TensorRT (:mod:`tocom.export.engines.worker`). Trap: with an op plugin in the network,
TensorRT-RTX's parser opens the unversioned ``libtensorrt_rtx.so`` and ends the process when it cannot. A folder of
links on LD_LIBRARY_PATH before the process starts cures that.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tocom.errors import EngineError, RequestError
from tocom.system.dependencies import package_folders

__all__ = ["BACKENDS", "PORTABLE", "BackendFound", "Device", "find_backend", "find_device", "link_libraries"]

BACKENDS = ("tensorrt", "tensorrt-rtx")
# What TensorRT-RTX builds for without a GPU, asked for one by one: its default is not for reading. Neither Orin (8.7)
# nor Hopper (9.0) can be asked for (ComputeCapability of 1.7.1).
PORTABLE = ("8.6", "8.9", "12.0")
_RTX_LIBRARIES = ("libcudart", "libtensorrt_rtx", "libtensorrt_onnxparser_rtx")
_INSTALL = {
    "tensorrt": "install TensorRT (JetPack has it; elsewhere NVIDIA's index: pip install tensorrt)",
    "tensorrt-rtx": "install the extra tocom[rtx]",
}


@dataclass(frozen=True)
class Device:
    """The GPU that engines are built on and for."""

    name: str
    compute_capability: tuple[int, int]

    @property
    def slug(self) -> str:
        """The name as a part of a folder's name, such as ``nvidia-h200-sm90``."""
        name = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return f"{name}-sm{self.compute_capability[0]}{self.compute_capability[1]}"


@dataclass(frozen=True)
class BackendFound:
    """A TensorRT that is installed here.

    Attributes:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        version: Such as ``10.13.2`` or ``1.7.1.116``.
        module: The Python module that a child process imports.
        libraries: Shared libraries to link and load before it, in this order; empty when the module finds its own.
    """

    name: str
    version: str
    module: str
    libraries: tuple[Path, ...] = ()

    @property
    def op_plugin_major(self) -> int:
        """TensorRT major version whose headers fit: TensorRT-RTX 1.x shares the plugin interface of TensorRT 10."""
        return 10 if self.name == "tensorrt-rtx" else int(self.version.split(".")[0])


def find_backend(name: str) -> BackendFound:
    """Return the backend of a name; ``auto`` takes TensorRT, then TensorRT-RTX.

    Raises:
        RequestError: The name is unknown.
        EngineError: It is not installed here; the message says what is missing.
    """
    finders = {"tensorrt": _find_tensorrt, "tensorrt-rtx": _find_tensorrt_rtx}
    if name == "auto":
        refused = []
        for finder in finders.values():
            try:
                return finder()
            except EngineError as error:
                refused.append(str(error))
        raise EngineError(f"Nothing here builds engines. {' '.join(refused)}")
    if name not in finders:
        raise RequestError(f"The 'backend' parameter must be auto, {' or '.join(BACKENDS)}. Got {name!r} instead.")
    return finders[name]()


def find_device() -> Device | None:
    """Return the first GPU, asked through the driver alone, or None where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR are 75 and 76.
    if (
        driver.cuInit(0) != 0
        or driver.cuDeviceGet(ctypes.byref(handle), 0) != 0
        or driver.cuDeviceGetName(name, len(name), handle) != 0
        or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, handle) != 0
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, handle) != 0
    ):
        return None
    return Device(name.value.decode(errors="replace"), (major.value, minor.value))


def link_libraries(backend: BackendFound, folder: Path) -> dict[str, str]:
    """Fill ``folder`` with links under every name that is looked up; return the environment that uses them.

    Raises:
        EngineError: The folder cannot be written.
    """
    environment = dict(os.environ)
    if not backend.libraries:
        return environment
    try:
        for library in backend.libraries:
            stem, _, version = library.name.partition(".so.")
            for name in (f"{stem}.so", f"{stem}.so.{version.split('.')[0]}"):
                (folder / name).symlink_to(library.resolve())
    except OSError as error:
        raise EngineError(f"Cannot link {backend.name}'s libraries in {folder}: {error.strerror}.") from error
    before = environment.get("LD_LIBRARY_PATH")
    environment["LD_LIBRARY_PATH"] = f"{folder}{os.pathsep}{before}" if before else str(folder)
    return environment


def _is_installed(module: str) -> bool:
    """Return whether a module can be imported; a folder without code, such as of type stubs, cannot."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.loader is not None


def _find_tensorrt() -> BackendFound:
    if not _is_installed("tensorrt"):
        raise EngineError(f"TensorRT is not installed for this Python: {_INSTALL['tensorrt']}.")
    version = _metadata_version("tensorrt", "tensorrt-cu13", "tensorrt-cu12") or _import_version("tensorrt")
    return BackendFound("tensorrt", version, "tensorrt")


def _find_tensorrt_rtx() -> BackendFound:
    if _is_installed("tensorrt_rtx"):
        version = _metadata_version("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12")
        return BackendFound("tensorrt-rtx", version or _import_version("tensorrt_rtx"), "tensorrt_rtx")
    version = _metadata_version("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings")
    if version is None:
        raise EngineError(f"TensorRT-RTX is not installed for this Python: {_INSTALL['tensorrt-rtx']}.")
    libraries = _rtx_libraries()
    missing = [name for name in _RTX_LIBRARIES if name not in libraries]
    if missing:
        raise EngineError(
            f"TensorRT-RTX's Python bindings {version} are here, but not {', '.join(missing)}: "
            f"{_INSTALL['tensorrt-rtx']}."
        )
    for name in _RTX_LIBRARIES[1:]:
        have = libraries[name].name.partition(".so.")[2]
        if not version.startswith(have):
            raise EngineError(
                f"TensorRT-RTX's Python bindings are version {version}, {libraries[name]} is {have}: both must be "
                f"one version. Reinstall them together: {_INSTALL['tensorrt-rtx']}."
            )
    return BackendFound(
        "tensorrt-rtx", version, "tensorrt_rtx_bindings", tuple(libraries[name] for name in _RTX_LIBRARIES)
    )


def _rtx_libraries() -> dict[str, Path]:
    """Return the libraries by stem: from TENSORRT_RTX_ROOT, else from the wheel of ONNX Runtime's provider."""
    folders: list[Path] = []
    if root := os.environ.get("TENSORRT_RTX_ROOT"):
        folders += [Path(root) / "lib", Path(root)]
    for package in ("tensorrt_rtx_libs", "onnxruntime_ep_nv_tensorrt_rtx"):
        folders += package_folders(package)
    found: dict[str, Path] = {}
    for folder in folders:
        for stem in _RTX_LIBRARIES:
            names = sorted(folder.glob(f"{stem}.so.*"), key=lambda path: len(path.name), reverse=True)
            if names:
                found.setdefault(stem, names[0])
    return found


def _metadata_version(*names: str) -> str | None:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _import_version(module: str) -> str:
    """Ask a child process: importing TensorRT here could end this one."""
    code = f"import {module}; print({module}.__version__)"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"The module {module} is installed, but importing it took longer than 120 s. Try it alone: "
            f"python -c 'import {module}'."
        ) from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise EngineError(
            f"The module {module} is installed but cannot be imported: {lines[-1] if lines else 'killed'}."
        )
    return done.stdout.strip()

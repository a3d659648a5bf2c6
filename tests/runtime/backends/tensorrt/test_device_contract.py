"""The device contract, kept by all three libraries that call CUDA, on the host's driver and on a real one."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import device_contract
import numpy as np
import pytest
from device_contract import CASES, ON_A_GPU
from host_cuda import HostCuda, cuda_headers, driver_folder
from scripted_pycuda import scripted_pycuda

from tocom.cli import doctor
from tocom.errors import EngineError
from tocom.runtime.backends.arrays import device_images
from tocom.runtime.backends.tensorrt.device import failures
from tocom.runtime.backends.tensorrt.device.libcuda import FUNCTIONS, LibcudaDevice
from tocom.runtime.backends.tensorrt.device.pycuda import PycudaDevice
from tocom.runtime.backends.tensorrt.device.select import LIBRARIES, LIBRARY_VARIABLE, Device, open_device

HELPERS = Path(device_contract.__file__).parent
NAMES = json.loads((HELPERS / "pycuda_names.json").read_text())


@pytest.fixture(params=["libcuda", "pycuda"])
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[..., Device], HostCuda]:
    cuda = HostCuda()
    if request.param == "libcuda":
        return lambda index=0: LibcudaDevice(index, cuda.path), cuda
    use_scripted_pycuda(cuda, monkeypatch)
    return PycudaDevice, cuda


def use_scripted_pycuda(cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", HashableNamespace(scripted_pycuda(cuda)))


class HashableNamespace(ModuleType):
    def __init__(self, names: SimpleNamespace) -> None:
        super().__init__("pycuda.driver")
        self.__dict__.update(vars(names))


@pytest.mark.parametrize("case", CASES)
def test_libcuda_and_scripted_pycuda_keep_the_contract(
    layer: tuple[Callable[..., Device], HostCuda], case: str
) -> None:
    CASES[case](*layer)


def run_in_child(name: str, on_host: bool) -> dict[str, str]:
    """Return what went wrong in a process of its own, where packages find the host's driver as the machine's."""
    environment = dict(os.environ)
    arguments = []
    if on_host:
        arguments = [str(driver_folder() / "libcuda.so.1")]
        environment |= {"LD_LIBRARY_PATH": str(driver_folder()), "LD_PRELOAD": arguments[0]}
    environment["PYTHONPATH"] = str(HELPERS)
    done = subprocess.run(
        [sys.executable, "-m", "device_contract", name, *arguments],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("name", "module"), [("cuda-python", "cuda.bindings.driver"), ("pycuda", "pycuda.driver")])
def test_the_real_packages_keep_the_contract(name: str, module: str) -> None:
    """The package itself, where it is installed, over the host's driver: no double of it at all."""
    pytest.importorskip(module.split(".")[0])
    results = run_in_child(name, on_host=True)
    assert results == dict.fromkeys(CASES, "")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["libcuda", "pycuda", "cuda-python"])
def test_a_real_gpu_keeps_the_contract(name: str) -> None:
    if name != "libcuda":
        pytest.importorskip({"pycuda": "pycuda", "cuda-python": "cuda.bindings"}[name])
    assert run_in_child(name, on_host=False) == dict.fromkeys(ON_A_GPU, "")


C_TYPES: dict[str, Any] = {
    "unsigned int": ctypes.c_uint, "int": ctypes.c_int, "size_t": ctypes.c_size_t, "CUdevice": ctypes.c_int,
    "unsigned long long": ctypes.c_ulonglong, "CUdeviceptr": ctypes.c_uint64, "char": ctypes.c_char,
    "void": None, "CUresult": ctypes.c_int, "CUdevice_attribute": ctypes.c_int, "CUstreamCaptureMode": ctypes.c_int,
    **dict.fromkeys(("CUcontext", "CUstream", "CUevent", "CUgraph", "CUgraphExec"), ctypes.c_void_p),
}  # fmt: skip


def c_type(parameter: str) -> Any:
    """Return the ctypes type of a parameter in C, of the kind that ``FUNCTIONS`` uses."""
    words = parameter.replace("const ", "").strip()
    base, stars = re.fullmatch(r"(.+?)\s*(\**)\s*\w+", words).groups()  # type: ignore[union-attr]
    kind, depth = C_TYPES[base.strip()], len(stars)
    if base.strip() in ("void", "char") and depth:
        kind, depth = {"void": ctypes.c_void_p, "char": ctypes.c_char_p}[base.strip()], depth - 1
    return ctypes.POINTER(kind) if depth else kind


def test_every_function_is_called_as_the_header_declares_it() -> None:
    """Prototypes and versioned symbols against NVIDIA's cuda.h: a wrong width or order is silent through ctypes."""
    headers = list(cuda_headers())
    if not headers:
        pytest.skip("needs NVIDIA's cuda.h")
    for folder in headers:
        text = (folder / "cuda.h").read_text()
        macros = dict(re.findall(r"#\s*define (cu\w+)\s+(?:__CUDA_API_PT[DS]Z?\()?(cu\w+)\)?\s*\n", text))
        # Before the section about older versions, in which macros are off.
        newest = text[: text.index("#if defined(__CUDA_API_VERSION_INTERNAL)", text.index("CUDAAPI cuGraphLaunch"))]
        prototypes = dict(re.findall(r"CUresult CUDAAPI (cu\w+)\(([^)]*)\)", newest))
        for name, (symbol, types) in FUNCTIONS.items():
            declared = tuple(c_type(parameter) for parameter in prototypes[name].split(","))
            assert declared == types, f"{name} in {folder}: {prototypes[name]}"
            assert macros.get(name, name) == symbol, name


def test_scripted_pycuda_has_only_what_pycuda_has() -> None:
    """Names and arguments, as read from pycuda's source: ``pycuda_names.json`` says from which."""
    for name, value in vars(scripted_pycuda(HostCuda())).items():
        if name in NAMES["exceptions"]:
            continue
        if name in NAMES["functions"]:
            arguments = NAMES["functions"][name]
            assert arguments is None or list(inspect.signature(value).parameters) == arguments, name
            continue
        made = {member for member in vars(value) if not member.startswith("_")}
        assert made <= set(NAMES["classes"][name]), f"{name} has what pycuda's has not"
    assert NAMES["origin"].startswith("https://github.com/inducer/pycuda, v2026.1")


def test_the_list_of_names_is_the_installed_pycudas() -> None:
    driver = pytest.importorskip("pycuda._driver")
    for kind in ("functions", "classes", "exceptions", "enums"):
        for name in NAMES[kind]:
            assert hasattr(driver, name), name
    assert not hasattr(driver, "stream_flags")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda pycuda: pycuda.Stream("1"),
        lambda pycuda: pycuda.mem_alloc(4.0),
        lambda pycuda: pycuda.memcpy_dtod_async(1, 2),
        lambda pycuda: pycuda.memcpy_htod_async(1, b"12", 77),
        lambda pycuda: pycuda.stream_flags,
        lambda pycuda: pycuda.Context(),
    ],
)
def test_a_wrong_call_of_pycuda_fails_here_too(wrong: Callable[[Any], Any]) -> None:
    pycuda = scripted_pycuda(HostCuda())
    with pytest.raises((TypeError, AttributeError, pycuda.RuntimeError)):
        wrong(pycuda)


@pytest.mark.fault("no NVIDIA driver", outcome="EngineError that says so, and how a container gets one")
def test_no_driver_is_told() -> None:
    with pytest.raises(EngineError, match=r"There is no NVIDIA driver here .*--runtime nvidia"):
        LibcudaDevice(path="libcuda-that-is-not-there.so.1")


@pytest.mark.parametrize(("layer", "package"), [("cuda-python", "cuda.bindings"), ("pycuda", "pycuda")])
def test_packages_tell_a_missing_driver_from_themselves(layer: str, package: str) -> None:
    pytest.importorskip(package)
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("this machine has a driver")
    program = (
        "from tocom.runtime.backends.tensorrt.device.select import LIBRARIES\n"
        f"try:\n    LIBRARIES[{layer!r}](0)\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("EngineError There is no NVIDIA driver here ("), done.stdout + done.stderr


@pytest.mark.fault(
    "a driver that lacks a function the runtime calls", outcome="EngineError that names it, and asks for a newer driver"
)
def test_a_driver_without_a_function_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = HostCuda()
    monkeypatch.setitem(FUNCTIONS, "cuInit", ("cuInit_v9", FUNCTIONS["cuInit"][1]))
    with pytest.raises(EngineError, match=r"has no cuInit_v9, which the runtime needs: it is older than CUDA 11\.4"):
        LibcudaDevice(path=cuda.path)


@pytest.mark.fault(
    "device nodes that this user may not open", outcome="EngineError that names them and the groups that may"
)
def test_device_nodes_without_permission_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = HostCuda()
    node = tmp_path / "nvidiactl"
    node.touch()
    monkeypatch.setattr(failures, "_NODES", (str(node),))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may open anything
    cuda.fail_next("cuInit", 100)
    with pytest.raises(EngineError, match=r"no CUDA-capable device.*may not open .*nvidiactl: add it to the group"):
        LibcudaDevice(path=cuda.path)


def test_the_library_is_the_drivers_own_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = HostCuda()
    use_scripted_pycuda(cuda, monkeypatch)
    monkeypatch.setenv(LIBRARY_VARIABLE, "pycuda")
    assert open_device().library == "pycuda"
    monkeypatch.setenv(LIBRARY_VARIABLE, "cudart")
    with pytest.raises(EngineError, match=r"must be one of libcuda, pycuda, cuda-python\. Got 'cudart'"):
        open_device()
    monkeypatch.delenv(LIBRARY_VARIABLE)
    monkeypatch.setattr(LibcudaDevice.__init__, "__defaults__", (0, cuda.path))
    assert open_device().library == "libcuda"


def test_doctor_opens_the_gpu_and_says_what_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def gpu() -> doctor.Finding:
        return next(each for each in doctor.diagnose() if each.what == "GPU")

    cuda = HostCuda()
    monkeypatch.setattr(LibcudaDevice.__init__, "__defaults__", (0, cuda.path))
    found = gpu()
    assert found.ok
    assert found.found == "Host GPU 0, compute capability 8.7, CUDA 12.6 through libcuda, 1.0 of 1.0 GiB free"
    cuda.fail_next("cuInit", 100)
    assert "no CUDA-capable device is detected" in gpu().cure
    assert cuda.leaks() == {}


def test_packages_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, variable in (("cuda.bindings.driver", "cuda-python"), ("pycuda.driver", "pycuda")):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setenv(LIBRARY_VARIABLE, variable)
        with pytest.raises(EngineError, match=rf"{variable} cannot be imported .*pip install 'tocom\["):
            open_device()
    assert importlib.util.find_spec("tocom") is not None


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["libcuda", "pycuda", "cuda-python"])
@pytest.mark.parametrize("dlpack", [True, False], ids=["dlpack", "interface"])
def test_a_tensor_that_torch_still_writes_is_waited_for_on_a_gpu(name: str, dlpack: bool) -> None:
    """The race for real: a stream is kept busy, then writes; without waiting, the old values would be read."""
    torch = pytest.importorskip("torch")
    if name != "libcuda":
        pytest.importorskip({"pycuda": "pycuda", "cuda-python": "cuda.bindings"}[name])
    device = LIBRARIES[name](0)
    tensor = torch.zeros(4, 3, 8, 8, device="cuda")
    torch.cuda.synchronize()
    # The interface of torch names no stream: what is on the legacy stream is waited for.
    busy = torch.cuda.Stream() if dlpack else torch.cuda.default_stream()
    with device.attached():
        stream, intake = device.create_stream(), device.create_stream()
        read = device.pinned(tensor.numel() * 4)
        for value in (1.0, 2.0, 3.0):
            with torch.cuda.stream(busy):
                torch.cuda._sleep(200_000_000)  # about 0.1 s
                tensor.fill_(value)
                shown = tensor if dlpack else SimpleNamespace(__cuda_array_interface__=tensor.__cuda_array_interface__)
                found = device_images(shown, intake, 0)
            assert found is not None
            device.wait_for(stream, found.stream)
            device.to_host(read.ctypes.data, found.pointer, read.nbytes, stream)
            device.synchronize(stream)
            assert (read.view(np.float32) == value).all()
        device.release_pinned(read)
        device.release_stream(stream)
        device.release_stream(intake)
    device.close()

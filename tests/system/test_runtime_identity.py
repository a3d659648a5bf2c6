"""What names the device, and the libraries that are really installed here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tocom.errors import EngineError
from tocom.runtime.backends.tensorrt.library import import_tensorrt
from tocom.system.cpu import cpu_identity, power_mode, usable_cores


def test_usable_cores_follow_the_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= usable_cores() <= len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_identity_is_text_and_stable() -> None:
    identity = cpu_identity()
    assert {"processor", "architecture", "cores", "system"} <= set(identity)
    assert all(isinstance(value, str) and value for value in identity.values())
    assert cpu_identity() == identity


@pytest.mark.parametrize(
    ("script", "mode"),
    [
        ("echo 'NV Power Mode: MAXN'; echo 0", "MAXN"),
        ("echo 'NV Power Mode: 15W'; echo 2", "15W"),
        ("echo nothing known", None),
        ("exit 1", None),
    ],
)
def test_the_power_mode_of_a_jetson(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, mode: str | None
) -> None:
    tool = tmp_path / "nvpmodel"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    empty = tmp_path / "empty"
    assert power_mode(empty) == mode
    for policy, governor in enumerate(["powersave", "powersave"]):
        folder = empty / f"sys/devices/system/cpu/cpufreq/policy{policy}"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(governor + "\n")
    assert power_mode(empty) == (mode or "powersave")
    (empty / "sys/firmware/acpi").mkdir(parents=True)
    (empty / "sys/firmware/acpi/platform_profile").write_text("balanced\n")
    assert power_mode(empty) == (mode or "balanced, powersave")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_a_missing_tensorrt_says_what_to_install() -> None:
    with pytest.raises(EngineError, match=r"tensorrt is not installed for this Python\. Install TensorRT"):
        import_tensorrt("tensorrt")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="needs the extra tocom[rtx]")
def test_the_real_tensorrt_rtx_has_what_the_backend_calls() -> None:
    # In a process of its own: the libraries would stay loaded in this one.
    script = """
from tocom.runtime.backends.tensorrt.library import LogCapture, import_tensorrt
trt = import_tensorrt("tensorrt-rtx")
engine = ("create_execution_context", "device_memory_size_v2", "get_tensor_mode", "get_tensor_name",
          "get_tensor_shape", "num_io_tensors")
context = ("execute_async_v3", "set_device_memory", "set_input_shape", "set_tensor_address", "is_stream_capturable")
missing = [name for name in engine if not hasattr(trt.ICudaEngine, name)]
missing += [name for name in context if not hasattr(trt.IExecutionContext, name)]
assert not missing, missing
trt.ExecutionContextAllocationStrategy.USER_MANAGED, trt.TensorIOMode.INPUT
assert hasattr(trt.get_plugin_registry(), "load_library")
capture = LogCapture(trt)
capture.logger.log(trt.ILogger.Severity.ERROR, "two\\nlines")
capture.logger.log(trt.ILogger.Severity.VERBOSE, "chatter")
assert capture.take() == "two lines", capture.take()
print(trt.__version__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1.")

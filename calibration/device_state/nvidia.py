"""An NVIDIA GPU's clocks, temperature, power, throttling and energy through NVML (package ``nvidia-ml-py``)."""

from __future__ import annotations

import importlib
import logging
import os
import weakref
from collections.abc import Callable
from typing import Any

from tocom.formats.measurements import State

__all__ = ["NvmlReader"]

log = logging.getLogger("tocom.calibration")

# Bits of nvmlClocksEventReasons that slow an engine down against a user's wish.
_THROTTLE = {0x4: "power cap", 0x8: "hardware", 0x20: "thermal", 0x40: "hardware thermal", 0x80: "power brake"}


class NvmlReader:
    """Reads one GPU.

    NVML, which counts its users, is shut down when the reader goes: a driver that is to be reloaded, or a GPU that is
    to be reset, waits for all who have it open.

    Args:
        nvml: The module ``pynvml``.
        gpu: The GPU's name, as CUDA gives it.

    Raises:
        NVMLError: NVML does not start, or does not list the GPUs.
    """

    name = "nvml"

    def __init__(self, nvml: Any, gpu: str) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        # Not at the end of the process: the system does it then, in one that was forked from this one too.
        weakref.finalize(self, nvml.nvmlShutdown).atexit = False
        self._handle = _find(nvml, gpu)

    @classmethod
    def open(cls, gpu: str, nvml: Any = None) -> NvmlReader | None:
        """Return a reader of the GPU of this name; None where NVML or the GPU is not there.

        Args:
            gpu: The GPU's name, as CUDA gives it.
            nvml: The module; given by tests, imported otherwise.
        """
        if nvml is None:
            try:
                nvml = importlib.import_module("pynvml")
            except ImportError:
                log.warning("the GPU's clocks are not recorded: install nvidia-ml-py (pip install 'tocom[nvidia]')")
                return None
        try:
            reader = cls(nvml, gpu)
        except nvml.NVMLError as error:
            log.warning("the GPU's clocks are not recorded: NVML does not start, or not list the GPUs (%s)", error)
            return None
        return None if reader._handle is None else reader

    def read(self) -> State:
        """Return clocks in MHz, temperature, power and power limit in watts, and why it is throttled."""
        nvml, handle = self._nvml, self._handle
        reasons = self._get(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        found: dict[str, Any] = {
            "gpu_clock_mhz": self._get(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            "gpu_memory_clock_mhz": self._get(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            "gpu_temperature_c": self._get(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            "gpu_power_w": self._get(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
            "gpu_power_limit_w": self._get(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3),
            "gpu_throttle": None
            if reasons is None
            else ", ".join(name for bit, name in _THROTTLE.items() if reasons & bit) or "none",
        }
        return {key: value for key, value in found.items() if value is not None}

    def energy_mj(self) -> float | None:
        """Return the GPU's own counter since the driver was loaded; None before the Volta generation."""
        value = self._get(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        return None if value is None else float(value)

    def _get(self, call: Callable[[], Any]) -> Any:
        """Return what NVML says; None where this GPU or driver does not tell it."""
        try:
            return call()
        except self._nvml.NVMLError:
            return None


def _find(nvml: Any, gpu: str) -> Any:
    """Return the handle of the GPU of this name. Of several, the first visible to CUDA when it is named by its UUID."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    named = [handle for handle in handles if _plain(nvml.nvmlDeviceGetName(handle)) == gpu]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    for handle in named:
        if len(named) > 1 and visible and _plain(nvml.nvmlDeviceGetUUID(handle)).startswith(visible):
            return handle
    if len(named) > 1 and visible.isdigit() and int(visible) < len(handles) and handles[int(visible)] in named:
        return handles[int(visible)]
    if not named:
        log.warning("the GPU's clocks are not recorded: NVML knows no GPU named %r", gpu)
    return named[0] if named else None


def _plain(value: Any) -> str:
    # Older versions of the package return bytes.
    return value.decode() if isinstance(value, bytes) else str(value)

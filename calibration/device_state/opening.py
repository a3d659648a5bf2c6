"""Opens a reader of everything that this machine reports."""

from __future__ import annotations

from collections.abc import Mapping

from tocom.calibration.device_state.reader import CombinedReader, StateReader

__all__ = ["open_reader"]


def open_reader(device: Mapping[str, str]) -> CombinedReader:
    """Return a reader of everything that this machine reports.

    Args:
        device: What identifies the device, as a backend gives it; with ``gpu``, the GPU of that name is read as well.
            Its energy counts then, else the CPU's.
    """
    from tocom.calibration.device_state.linux import LinuxReader
    from tocom.calibration.device_state.nvidia import NvmlReader

    readers: list[StateReader] = []
    if "gpu" in device:
        nvml = NvmlReader.open(device["gpu"])
        if nvml is not None:
            readers.append(nvml)
    return CombinedReader([*readers, LinuxReader(gpu="gpu" in device)])

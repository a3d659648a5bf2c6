"""The device's state while it is measured: one small interface, and everything that this machine reports behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tocom.calibration.device_state.linux import LinuxReader
from tocom.calibration.device_state.nvidia import NvmlReader
from tocom.formats.measurements import State

__all__ = ["CombinedReader", "StateReader", "open_reader"]


class StateReader(Protocol):
    """Reads one part of the device. A reader never raises for a value that it cannot get: the key is absent.

    Attributes:
        name: Its name, as ``energy``'s source in the profile.
    """

    name: str

    def read(self) -> State:
        """Return what can be read now: names with their unit (``gpu_clock_mhz``) to a number or a text."""

    def energy_mj(self) -> float | None:
        """Return a counter of the energy used so far in millijoules; None where the device has none."""


class CombinedReader:
    """Several readers as one; for a key or the energy the first one that knows it counts."""

    def __init__(self, readers: Sequence[StateReader]) -> None:
        self._readers = list(readers)
        self._counter = next((reader for reader in readers if reader.energy_mj() is not None), None)
        self.name = "none" if self._counter is None else self._counter.name

    def read(self) -> State:
        """Return everything that any of them can read."""
        state: State = {}
        for reader in reversed(self._readers):
            state.update(reader.read())
        return state

    def energy_mj(self) -> float | None:
        """Return the first counter that there is."""
        return None if self._counter is None else self._counter.energy_mj()


def open_reader(device: Mapping[str, str]) -> CombinedReader:
    """Return a reader of everything that this machine reports.

    Args:
        device: What identifies the device, as a backend gives it; with ``gpu``, the GPU of that name is read as well.
            Its energy counts then, else the CPU's.
    """
    nvml = NvmlReader.open(device["gpu"]) if "gpu" in device else None
    return CombinedReader([*([] if nvml is None else [nvml]), LinuxReader(gpu="gpu" in device)])

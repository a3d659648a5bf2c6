"""The device's state while it is measured: everything that this machine reports, behind one reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tocom.calibration.device_state.linux import LinuxReader
from tocom.calibration.device_state.nvidia import NvmlReader
from tocom.formats.measurements import State

__all__ = ["CombinedReader", "open_reader"]


class CombinedReader:
    """Several readers as one; for a key or the energy the first one that knows it counts.

    No reader raises for a value that it cannot get: the key is absent.

    Attributes:
        name: Of the reader that counts the energy, as ``energy``'s source in the profile.
    """

    def __init__(self, readers: Sequence[LinuxReader | NvmlReader]) -> None:
        self._readers = list(readers)
        self._counter = next((reader for reader in readers if reader.energy_mj() is not None), None)
        self.name = "none" if self._counter is None else self._counter.name

    def read(self) -> State:
        """Return what can be read now: names with their unit (``gpu_clock_mhz``) to a number or a text."""
        state: State = {}
        for reader in reversed(self._readers):
            state.update(reader.read())
        return state

    def energy_mj(self) -> float | None:
        """Return the first counter of the energy used so far in millijoules; None where there is none."""
        return None if self._counter is None else self._counter.energy_mj()


def open_reader(device: Mapping[str, str]) -> CombinedReader:
    """Return a reader of everything that this machine reports.

    Args:
        device: What identifies the device, as a backend gives it; with ``gpu``, the GPU of that name is read as well.
            Its energy counts then, else the CPU's.
    """
    nvml = NvmlReader.open(device["gpu"]) if "gpu" in device else None
    return CombinedReader([*([] if nvml is None else [nvml]), LinuxReader(gpu="gpu" in device)])

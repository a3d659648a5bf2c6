"""The device's state while it is measured: one small interface, its readers, and the recorder that marks changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["CombinedReader", "StateReader"]

State = dict[str, "float | str"]


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

    def close(self) -> None:
        """Release what it holds. More than once is fine."""


class CombinedReader:
    """Several readers as one; for a key or the energy the first one that knows it counts."""

    def __init__(self, readers: Sequence[StateReader]) -> None:
        self._readers = list(readers)
        self.name = "none"
        for reader in self._readers:
            if reader.energy_mj() is not None:
                self.name = reader.name
                break

    def read(self) -> State:
        """Return everything that any of them can read."""
        state: State = {}
        for reader in reversed(self._readers):
            state.update(reader.read())
        return state

    def energy_mj(self) -> float | None:
        """Return the first counter that there is."""
        return next((mj for reader in self._readers if (mj := reader.energy_mj()) is not None), None)

    def close(self) -> None:
        """Close all of them."""
        for reader in self._readers:
            reader.close()

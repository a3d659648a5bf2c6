"""The seam between the runtime and what computes: two small protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from tocom.runtime.memory.needs import Need

__all__ = ["DEVICE_TIMEOUT_S", "Backend", "Engine", "Wrapper"]

DEVICE_TIMEOUT_S = 60.0


class Engine(Protocol):
    """One degree, resident on the device."""

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name, float32; arrays that no later call touches.

        Args:
            images: [batch, channels, height, width], float32, of any memory order; checked by the caller. An array, or
                what :meth:`Backend.adopt` returned.

        Raises:
            EngineError: The device refused.
        """

    def is_settled(self, batch: int) -> bool:
        """Return whether this batch size runs from now on as it ran last; not while a graph is still to be captured."""

    def close(self) -> None:
        """Give the memory back. More than once is fine."""


class Wrapper:
    """Base of engines that run another one their own way."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def is_settled(self, batch: int) -> bool:
        """Return what the engine says."""
        return self._engine.is_settled(batch)

    def close(self) -> None:
        """Give the memory back."""
        self._engine.close()


class Backend(Protocol):
    """Opens the engines of one bundle.

    Attributes:
        name: Its name in profiles and messages.
        reason: Why it was chosen.
        device: What identifies the device.
        threads: CPU threads of one inference; 0 where that has no meaning.
        shares_weights: Degrees that are loaded together keep one copy of equal weights.
        timeout_s: Seconds until a device that does not answer is given up, where the caller says nothing; None where
            the inference is computed on the caller's own thread and there is no device to fall silent.
    """

    name: str
    reason: str
    device: Mapping[str, str]
    threads: int
    shares_weights: bool
    timeout_s: float | None

    def needs(self, degrees: Sequence[int]) -> Mapping[int, Need]:
        """Return what each degree needs in memory, before any is loaded."""

    def adopt(self, images: Any) -> Any:
        """Return images of another library as what :meth:`Engine.run` takes, without a copy; None when it cannot."""

    def prepare(self, degrees: Sequence[int]) -> None:
        """Do once what these degrees share, before the first of them is loaded."""

    def load(self, degree: int) -> Engine:
        """Make a degree resident.

        Raises:
            EngineError: It cannot be loaded; the message says what to do.
            MemoryError: The device has no room for it.
        """

    def close(self) -> None:
        """Release what the engines shared. The engines are closed before."""

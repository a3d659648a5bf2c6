"""An engine of a narrower batch range than the bundle's: requests are split, and filled up with copies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import EngineError
from tocom.runtime.backends.base import Engine, Wrapper

__all__ = ["FixedBatchEngine"]


class FixedBatchEngine(Wrapper):
    """Runs any batch size on an engine that takes from ``least`` to ``most`` images.

    Args:
        engine: The engine.
        least: Smallest batch that it takes.
        most: Largest batch.
    """

    def __init__(self, engine: Engine, least: int, most: int) -> None:
        super().__init__(engine)
        self._least, self._most = least, most

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; arrays that no later call touches.

        Raises:
            EngineError: The device refused, or images in GPU memory are fewer or more than the engine takes.
        """
        count = len(images)
        if self._least <= count <= self._most:
            return self._engine.run(images)
        if not isinstance(images, np.ndarray):
            raise EngineError(
                f"The engine takes from {self._least} to {self._most} images at once, and images in GPU memory are not "
                f"copied. Got {count}. Give them in host memory, or build the engine with --batch."
            )
        parts = [images[start : start + self._most] for start in range(0, count, self._most)]
        answered = [self._engine.run(_filled(part, self._least)) for part in parts]
        return {
            name: np.concatenate([outputs[name][: len(part)] for outputs, part in zip(answered, parts, strict=True)])
            for name in answered[0]
        }

    def is_settled(self, batch: int) -> bool:
        """Return whether all sizes that this batch is split into run as they ran last."""
        sizes = {max(min(self._most, batch - start), self._least) for start in range(0, batch, self._most)}
        return all(self._engine.is_settled(size) for size in sizes)


def _filled(images: NDArray[Any], least: int) -> NDArray[Any]:
    return images if len(images) >= least else np.resize(images, (least, *images.shape[1:]))

"""Eight-bit pixels as a model's input, by the manifest's ``input`` entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["normalise"]


def normalise(pixels: NDArray[np.uint8], input_entry: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return 8-bit pixels [..., height, width, channels] as inputs [..., channels, height, width], float32."""
    mean, std = (np.asarray(input_entry[key], np.float32) for key in ("mean", "std"))
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))

"""Eight-bit pixels as a model's input, by the manifest's ``input`` entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["full_batches", "normalise", "random_images", "to_input"]


def to_input(pixels: NDArray[np.uint8], input_entry: Mapping[str, Any]) -> NDArray[Any]:
    """Return 8-bit pixels [..., height, width, channels] as an engine takes them, [..., channels, height, width].

    Args:
        pixels: At the model's size.
        input_entry: The manifest's ``input``; its ``dtype`` says whether they are normalised here.
    """
    if input_entry.get("dtype") == "uint8":
        return np.ascontiguousarray(np.moveaxis(pixels, -1, -3))
    return normalise(pixels, input_entry)


def normalise(pixels: NDArray[np.uint8], input_entry: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return 8-bit pixels [..., height, width, channels] as inputs [..., channels, height, width], float32."""
    # Channels come first before anything is computed: three numbers at the end of every pixel are slow to NumPy.
    mean, std = (np.asarray(input_entry[key], np.float32)[:, None, None] for key in ("mean", "std"))
    scaled = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
    scaled /= np.float32(255)
    scaled -= mean
    scaled /= std
    return scaled


def random_images(input_entry: Mapping[str, Any], batch: int, generator: np.random.Generator) -> NDArray[Any]:
    """Return noise [batch, channels, height, width] as an engine takes images: for measuring times."""
    shape = (batch, *input_entry["shape"][1:])
    if input_entry["dtype"] == "uint8":
        return generator.integers(0, 256, shape, np.uint8)
    return generator.standard_normal(shape, np.float32)


def full_batches(images: NDArray[Any], size: int) -> Iterator[tuple[NDArray[Any], int]]:
    """Yield batches of exactly ``size`` images, the last one filled up with copies, and how many each holds without.

    Args:
        images: [count, …].
        size: Images of a batch.
    """
    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield part if len(part) == size else np.resize(part, (size, *part.shape[1:])), len(part)

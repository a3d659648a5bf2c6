"""Shrinking an array of pixels as Pillow does, only where the model looks: products with narrow bands of weights.

Pillow takes each pixel of the smaller image from a window of the larger one: columns first, cut off at 0 and 255, then
rows. Both are products of matrices that are zero outside a band; here a few rows of the band are one product of BLAS.
Nothing is rounded in between, so an answer may differ from Pillow's by one grey level.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FILTERS", "Window", "shrink"]

# Rows of a band that make one product, and source rows that are looked at together: what stays in a core's cache.
_IN_ONE = 16
_ROWS = 48


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)


def _hamming(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 1.0, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0.0)


# How far a filter reaches, in pixels of the smaller image, and its weights: Pillow's (src/libImaging/Resample.c).
FILTERS: dict[str, tuple[float, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "box": (0.5, lambda x: np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)),
    "bilinear": (1.0, lambda x: np.maximum(1.0 - np.abs(x), 0.0)),
    "hamming": (1.0, _hamming),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
}


class Window(NamedTuple):
    """One direction of a resize and a crop.

    Attributes:
        source: Pixels of the larger image.
        full: Pixels of the smaller one.
        first: First one of those that is wanted.
        wanted: How many are.
    """

    source: int
    full: int
    first: int
    wanted: int


class _Band(NamedTuple):
    """Weights [count, stop - start] of some wanted pixels, from ``first`` on, over source pixels."""

    first: int
    start: int
    stop: int
    weights: NDArray[np.float32]


def shrink(pixels: NDArray[np.uint8], across: Window, down: Window, interpolation: str) -> NDArray[np.uint8]:
    """Return pixels [height, width, 3] at the wanted places, [down.wanted, across.wanted, 3].

    Args:
        pixels: The larger image.
        across: The columns.
        down: The rows.
        interpolation: One of ``FILTERS``.
    """
    columns, rows = _bands(across, interpolation), _bands(down, interpolation)
    left, right, top, bottom = columns[0].start, columns[-1].stop, rows[0].start, rows[-1].stop
    # [row, channel, column]: rows and channels are one direction to the products.
    between = np.empty((bottom - top, 3, across.wanted), np.float32)
    planes = np.empty((_ROWS, 3, right - left), np.float32)
    for start in range(top, bottom, _ROWS):
        taken = pixels[start : min(start + _ROWS, bottom), left:right]
        part = planes[: len(taken)]
        for channel in range(3):
            np.copyto(part[:, channel], taken[..., channel])
        source, out = part.reshape(-1, right - left), between[start - top :][: len(taken)].reshape(-1, across.wanted)
        for band in columns:
            wanted = out[:, band.first : band.first + len(band.weights)]
            np.matmul(source[:, band.start - left : band.stop - left], band.weights.T, out=wanted)
    np.clip(between, 0.0, 255.0, out=between)
    found = np.empty((down.wanted, 3 * across.wanted), np.float32)
    source = between.reshape(-1, 3 * across.wanted)
    for band in rows:
        wanted = found[band.first : band.first + len(band.weights)]
        np.matmul(band.weights, source[band.start - top : band.stop - top], out=wanted)
    np.clip(np.rint(found, out=found), 0.0, 255.0, out=found)
    return np.moveaxis(found.astype(np.uint8).reshape(down.wanted, 3, across.wanted), 1, -1)


@lru_cache(maxsize=64)
def _bands(window: Window, interpolation: str) -> tuple[_Band, ...]:
    reach, weigh = FILTERS[interpolation]
    scale = window.source / window.full
    taps: list[tuple[int, NDArray[Any]]] = []
    for pixel in range(window.first, window.first + window.wanted):
        centre = (pixel + 0.5) * scale
        start = max(int(centre - reach * scale + 0.5), 0)
        stop = min(int(centre + reach * scale + 0.5), window.source)
        weights = weigh((np.arange(start, stop, dtype=np.float64) - centre + 0.5) / scale)
        taps.append((start, weights / weights.sum()))
    bands = []
    for first in range(0, len(taps), _IN_ONE):
        group = taps[first : first + _IN_ONE]
        start, stop = group[0][0], max(begin + len(weights) for begin, weights in group)
        band = np.zeros((len(group), stop - start), np.float32)
        for row, (begin, weights) in enumerate(group):
            band[row, begin - start : begin - start + len(weights)] = weights
        bands.append(_Band(first, start, stop, band))
    return tuple(bands)

"""Shrinking an array of pixels as Pillow does, only where the model looks: products with narrow bands of weights.

Pillow takes each pixel of the smaller image from a window of the larger one: columns first, cut off at 0 and 255, then
rows. Both are products of matrices that are zero outside a band; here a few rows of the band are one product of BLAS.
The three colours of a pixel stay side by side, each with weights that skip the others: multiplying by zeros takes less
time than taking the colours apart. Nothing is rounded in between: an answer may differ from Pillow's by one grey level.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FILTERS", "Window", "shrink"]

# Rows of a band that make one product, and source rows that are looked at together: the fastest of what was tried for
# 1080p to 224. Two threads of ours were no faster: each product is so short that they wait for the interpreter.
_IN_ONE = 4
_ROWS = 192


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
    """Weights [count, stop - start] of some wanted pixels, from ``first`` on, over source pixels.

    ``across`` are the same weights turned: BLAS is a third faster where it need not turn them itself.
    """

    first: int
    start: int
    stop: int
    weights: NDArray[np.float32]
    across: NDArray[np.float32]


# Arrays of earlier calls: fresh ones of megabytes cost as much as what is computed, one fault a page. A call takes them
# out while it works, so that another thread, or a signal's handler that interrupts it, makes its own.
_scratch: list[dict[str, NDArray[np.float32]]] = []


def shrink(pixels: NDArray[np.uint8], across: Window, down: Window, interpolation: str) -> NDArray[np.uint8]:
    """Return pixels [height, width, 3] at the wanted positions, [down.wanted, across.wanted, 3].

    Args:
        pixels: The larger image.
        across: The columns.
        down: The rows.
        interpolation: One of ``FILTERS``.
    """
    columns, rows = _bands(across, interpolation, 3), _bands(down, interpolation)
    left, right, top, bottom = columns[0].start, columns[-1].stop, rows[0].start, rows[-1].stop
    lines = pixels.reshape(len(pixels), -1)
    try:
        scratch = _scratch.pop()
    except IndexError:
        scratch = {}
    part = _array(scratch, "part", _ROWS, right - left)
    between = _array(scratch, "between", bottom - top, 3 * across.wanted)
    for start in range(top, bottom, _ROWS):
        taken = lines[start : min(start + _ROWS, bottom), left:right]
        source, out = part[: len(taken)], between[start - top :][: len(taken)]
        np.copyto(source, taken)
        for band in columns:
            wanted = out[:, band.first : band.first + len(band.weights)]
            np.matmul(source[:, band.start - left : band.stop - left], band.across, out=wanted)
    np.clip(between, 0.0, 255.0, out=between)
    found = _array(scratch, "found", down.wanted, 3 * across.wanted)
    for band in rows:
        wanted = found[band.first : band.first + len(band.weights)]
        np.matmul(band.weights, between[band.start - top : band.stop - top], out=wanted)
    np.clip(np.rint(found, out=found), 0.0, 255.0, out=found)
    smaller = found.astype(np.uint8).reshape(down.wanted, across.wanted, 3)
    _scratch.append(scratch)
    return smaller


def _array(scratch: dict[str, NDArray[np.float32]], name: str, *shape: int) -> NDArray[np.float32]:
    if name not in scratch or scratch[name].shape != shape:
        scratch[name] = np.empty(shape, np.float32)
    return scratch[name]


@lru_cache(maxsize=64)
def _bands(window: Window, interpolation: str, channels: int = 1) -> tuple[_Band, ...]:
    """Return the bands of a window; of several channels side by side, each is weighed with its own kind alone."""
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
        each = np.kron(band, np.eye(channels, dtype=np.float32))
        bands.append(_Band(channels * first, channels * start, channels * stop, each, np.ascontiguousarray(each.T)))
    return tuple(bands)

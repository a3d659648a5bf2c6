"""Images of any kind as a model's input. Arrays, as cameras give them, take a fast way."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import DataError, RequestError
from tocom.formats.pixels import to_input
from tocom.images import preprocess, read_image, resized_size
from tocom.runtime.resampling import FILTERS, Window, shrink

__all__ = ["prepare"]

_ORDERS = ("rgb", "bgr")


def prepare(images: Any, entry: Mapping[str, Any], order: str = "rgb") -> NDArray[Any]:
    """Return images as a batch [batch, channels, height, width]; see :meth:`Runtime.preprocess`."""
    if order not in _ORDERS:
        raise RequestError(f"The 'order' parameter must be one of {', '.join(_ORDERS)}. Got {order!r} instead.")
    if isinstance(images, (list, tuple)):
        if not images:
            raise RequestError("The 'images' parameter must hold at least one image. Got none.")
        return np.stack([_one(image, entry, order) for image in images])
    return _one(images, entry, order)[None]


def _one(image: Any, entry: Mapping[str, Any], order: str) -> NDArray[Any]:
    if isinstance(image, (str, Path)):
        return read_image(image, entry)
    if isinstance(image, np.ndarray):
        if image.dtype == entry.get("dtype", "float32") and list(image.shape) == list(entry["shape"][1:]):
            return image  # prepared already
        return _of_array(image, entry, order)
    from PIL import Image

    try:
        if isinstance(image, Image.Image):
            return preprocess(image, entry)
        if isinstance(image, (bytes, bytearray, memoryview)):
            with Image.open(io.BytesIO(image)) as opened:
                return preprocess(opened, entry)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = re.sub(r" *<_io.BytesIO[^>]*>", " the bytes", str(error)).rstrip(".")
        raise DataError(f"Cannot read an image: {reason}.") from error
    raise RequestError(
        "The 'images' parameter must be bytes, a path, a PIL image or an array of uint8. "
        f"Got {type(image).__module__}.{type(image).__name__} instead."
    )


def _of_array(pixels: NDArray[Any], entry: Mapping[str, Any], order: str) -> NDArray[Any]:
    """Return an array's pixels, resized only where the crop looks."""
    from PIL import Image

    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise RequestError(
            "An array of pixels must be uint8 [height, width, 3] or [height, width]. "
            f"Got {pixels.dtype} {list(pixels.shape)} instead. Images that are prepared already go to infer()."
        )
    if 0 in pixels.shape:
        raise RequestError(f"An array of pixels must hold some. Got the shape {list(pixels.shape)}.")
    _, channels, height, width = entry["shape"]
    tall, wide = pixels.shape[:2]
    full_wide, full_tall = resized_size((wide, tall), entry)
    left, top = round((full_wide - width) / 2), round((full_tall - height) / 2)
    across, down = wide / full_wide, tall / full_tall
    # Where the image is higher than wide, or shrinks most in height, Pillow resizes the columns first, and what it cuts
    # off between differs; where it grows, there is nothing to save.
    fast = wide >= tall and across >= down >= 1 and min(left, top) >= 0
    fast = fast and entry["crop_mode"] != "border" and channels == 3 == pixels.ndim
    fast = fast and entry["interpolation"] in FILTERS
    if not fast:
        return preprocess(Image.fromarray(pixels[..., ::-1] if order == "bgr" and pixels.ndim == 3 else pixels), entry)
    columns, rows = Window(wide, full_wide, left, width), Window(tall, full_tall, top, height)
    resized = shrink(pixels, columns, rows, entry["interpolation"])
    return to_input(resized[..., ::-1] if order == "bgr" else resized, entry)

"""What an image file says about its own pixels: which way is up, and which range they have."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

__all__ = ["check_resized", "decoded"]

# Formats whose greys beyond 8 bits Pillow always hands on at the full range of 16 bits, if in 32-bit integers.
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM", "JPEG2000")
# TIFF's tags, which EXIF uses too.
_BITS_PER_SAMPLE, _ORIENTATION = 258, 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decoded(image: Any) -> Any:
    """Return a PIL image at 8 bits a channel, the right way up.

    A camera writes the EXIF orientation instead of turning the pixels. timm's transforms do not look at it; the person
    who labelled the photograph saw it turned.

    Raises:
        ValueError: The pixels' range is not known.
    """
    image.load()  # which turns a TIFF itself, and then forgets its orientation
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # Pillow raises what its parser meets in damaged EXIF: struct.error, KeyError, SyntaxError, …
        turn = None
    image = _eight_bits(image)
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Any) -> Any:
    """Return an image of more than 8 bits at 8, scaled from its own range, which Pillow would clip instead."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; store 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    if image.mode == "I" and image.format not in _SIXTEEN_BIT_FORMATS:
        raise ValueError("signed and 32-bit integer pixels have no agreed range; store 8 or 16 bits, unsigned")
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    white = (1 << int(bits[0] if isinstance(bits, tuple) else bits)) - 1
    pixels = np.asarray(image).astype(np.int64) * 255 // white
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def check_resized(image: Any, size: tuple[int, int]) -> None:
    """Check that an image does not take more memory resized than Pillow lets a file unpack to.

    Args:
        image: The image before.
        size: Width and height that it is to get.

    Raises:
        ValueError: It would: one that is a line takes gigabytes where its short side grows to the model's.
    """
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and size[0] * size[1] > most:
        raise ValueError(
            f"of {image.width} x {image.height} pixels the model takes the middle of {size[0]} x {size[1]}, which is "
            f"more than {most} pixels; crop the image first"
        )

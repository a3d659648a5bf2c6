"""Images as a model's input: numpy and Pillow alone, driven by the manifest's ``input`` entry."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import DataError

__all__ = ["SUFFIXES", "batches", "class_folders", "image_files", "preprocess", "read_image"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def image_files(folder: Path | str) -> list[Path]:
    """Return the image files of a folder and its subfolders, sorted by path. A single file gives itself.

    Links are followed, to folders too. Hidden files and folders are left out: other systems keep there what only looks
    like images (``._0.png``).

    Raises:
        DataError: The path is missing, or holds no image file.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise DataError(f"No image folder at {folder}. Give a folder of images ({', '.join(SUFFIXES)}).")
    files = sorted(path for path in _walk(folder) if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{folder} holds no image. Expected files ending in {', '.join(SUFFIXES)}.")
    return files


def class_folders(
    folder: Path | str, labels: Sequence[str] | None = None, *, classes: int | None = None
) -> list[tuple[Path, int]]:
    """Return the images of a folder with one subfolder per class, each with its class index.

    Args:
        folder: The folder; every subfolder is named after its class.
        labels: The model's class names; the index is the name's place in it. Without them, folders that are named by
            their index (``0``, ``1``, …), or all classes of the model in the order of their names.
        classes: How many classes the model has, where known.

    Raises:
        DataError: No subfolder, a subfolder whose name is no label, a class without an image, or no labels and other
            folders than the model has classes.
    """
    folder = Path(folder)
    entries = folder.iterdir() if folder.is_dir() else []
    names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder} holds no class folders. Expected {folder}/<class>/<image>, one folder per class.")
    loose = [path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name not in names]
    loose = [name for name in loose if not name.startswith(".")]
    if loose:
        raise DataError(
            f"{folder}: {_some(sorted(loose))} lie beside the class folders, so their class is not known. "
            "Move them into one, or away."
        )
    if labels is None and all(name.isdecimal() for name in names):
        index = {name: int(name) for name in names}
    elif labels is None and classes is not None and classes != len(names):
        raise DataError(
            f"{folder} holds {len(names)} class folders ({_some(names)}), the model has {classes} classes and no "
            "labels: which is which is not known. Name the folders by index, or give names: tocom export --labels."
        )
    else:
        index = {name: place for place, name in enumerate(labels if labels is not None else names)}
    samples: list[tuple[Path, int]] = []
    for name in names:
        if name not in index:
            raise DataError(
                f"{folder}: the folder {name!r} is no label of the model. It has: {_some(list(index))}. "
                "Rename the folder, or remove it."
            )
        samples += [(path, index[name]) for path in image_files(folder / name)]
    return samples


def read_image(path: Path | str, input_entry: Mapping[str, Any]) -> NDArray[np.float32]:
    """Read one image file as a model's input.

    Args:
        path: The image file, of any mode that Pillow converts to RGB.
        input_entry: The manifest's ``input``: shape, mean, std, interpolation, crop.

    Returns:
        [channels, height, width], float32, normalised.

    Raises:
        DataError: The file is missing, truncated or no image; it is named.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return preprocess(image, input_entry)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"Cannot read the image {path}: {error}. Replace the file, or remove it.") from error


def preprocess(image: Any, input_entry: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return a PIL image as a model's input: resize the shortest side, crop the centre, scale, normalise.

    Args:
        image: A ``PIL.Image.Image`` of any mode.
        input_entry: The manifest's ``input``.

    Returns:
        [channels, height, width], float32.
    """
    from PIL import Image

    from tocom.decoding import check_resized

    _, _, height, width = input_entry["shape"]
    crop = input_entry["crop"]
    resample = getattr(Image.Resampling, str(input_entry["interpolation"]).upper())
    image = _as_rgb(image)
    # As timm's evaluation transform: the side that is short for this crop becomes floor(size / crop), the other
    # keeps the aspect ratio, truncated.
    tall, wide = math.floor(height / crop), math.floor(width / crop)
    if wide * image.height >= tall * image.width:
        resized = (wide, max(int(wide * image.height / image.width), height))
    else:
        resized = (max(int(tall * image.width / image.height), width), tall)
    check_resized(image, resized)
    if resized != image.size:
        image = image.resize(resized, resample)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    mean = np.asarray(input_entry["mean"], np.float32).reshape(-1, 1, 1)
    std = np.asarray(input_entry["std"], np.float32).reshape(-1, 1, 1)
    return np.ascontiguousarray((pixels - mean) / std, dtype=np.float32)


def batches(
    paths: Sequence[Path], input_entry: Mapping[str, Any], size: int
) -> Iterator[tuple[list[Path], NDArray[np.float32]]]:
    """Yield images in groups of at most ``size``: their paths, and [batch, channels, height, width] float32."""
    for start in range(0, len(paths), size):
        group = list(paths[start : start + size])
        yield group, np.stack([read_image(path, input_entry) for path in group])


def _as_rgb(image: Any) -> Any:
    """Return the image as 8-bit RGB."""
    from tocom.decoding import decoded

    return decoded(image).convert("RGB")


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, links followed, each folder once.

    Raises:
        DataError: A folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot read the folder {error.filename}: {error.strerror}.") from error

    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(here)
        # A link to a folder above leads around for ever.
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            seen.add(real)
            yield from (Path(here, name) for name in files if not name.startswith("."))


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")

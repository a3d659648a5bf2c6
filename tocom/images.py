"""Images as a model's input: numpy and Pillow alone, driven by the manifest's ``input`` entry."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import DataError
from tocom.formats.pixels import normalise, to_input

__all__ = [
    "SUFFIXES",
    "as_seen",
    "check_labels",
    "class_folders",
    "image_files",
    "normalise",
    "preprocess",
    "read_image",
    "resize_and_crop",
]


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
        labels: The model's class names; a class is the index of its name. Without them, folders that are named by
            their index (``0``, ``1``, …), or all classes of the model in the order of their names.
        classes: How many classes the model has, where known.

    Raises:
        DataError: No subfolder, a subfolder whose name is not a label, a class without an image, or no labels and other
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
        beyond = [name for name in names if classes is not None and int(name) >= classes]
        if beyond:
            raise DataError(
                f"{folder}: the folders {_some(beyond)} are not classes of a model of {classes}, counted from 0. "
                "Rename the folders, or give names: tocom export --labels."
            )
    elif labels is None and classes is not None and classes != len(names):
        raise DataError(
            f"{folder} holds {len(names)} class folders ({_some(names)}), the model has {classes} classes and no "
            "labels: which is which is not known. Name the folders by index, or give names: tocom export --labels."
        )
    else:
        index = {as_seen(name): number for number, name in enumerate(labels if labels is not None else names)}
    samples: list[tuple[Path, int]] = []
    for name in names:
        if as_seen(name) not in index:
            raise DataError(
                f"{folder}: the folder {name!r} is not a label of the model. It has: {_some(list(index))}. "
                "Rename the folder, or remove it."
            )
        samples += [(path, index[as_seen(name)]) for path in image_files(folder / name)]
    return samples


def check_labels(labels: NDArray[np.int64] | None, classes: int) -> None:
    """Raise DataError where a class index, [images], is none of the model's ``classes``; without labels nothing is."""
    if labels is not None and int(labels.max()) >= classes:
        raise DataError(
            f"An image has the class index {int(labels.max())}, the model has {classes} classes. Give the class "
            "folders the names of the model's labels."
        )


def as_seen(name: str) -> str:
    """Return a name as people see it: a letter and its accent are one, however a system writes them (macOS: as two)."""
    return unicodedata.normalize("NFC", name).strip()


def read_image(path: Path | str, input_entry: Mapping[str, Any]) -> NDArray[Any]:
    """Read one image file as a model's input.

    Args:
        path: The image file, of any mode that Pillow converts to RGB.
        input_entry: The manifest's ``input``: shape, mean, std, interpolation, crop, crop_mode.

    Returns:
        [channels, height, width], float32 and normalised; or uint8, where the entry's ``dtype`` says so.

    Raises:
        DataError: The file is missing, truncated or no image; it is named.
    """
    from PIL import Image, UnidentifiedImageError

    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "a pipe or a device, which may never give a picture"
        raise DataError(f"Cannot read the image {path}: {kind}. Remove it.")
    try:
        with Image.open(path) as image:
            return preprocess(image, input_entry)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(
            f"Cannot read the image {path}: {str(error).rstrip('.')}. Replace the file, or remove it."
        ) from error


def preprocess(image: Any, input_entry: Mapping[str, Any]) -> NDArray[Any]:
    """Return a PIL image as a model's input, bit for bit as timm's evaluation transform gives it.

    Args:
        image: A ``PIL.Image.Image`` of any mode.
        input_entry: The manifest's ``input``: shape, mean, std, interpolation, crop, crop_mode.

    Returns:
        [channels, height, width], float32 and normalised; or uint8, where the entry's ``dtype`` says so.

    Raises:
        ValueError: The model takes neither one channel nor three, or the pixels have no known range.
    """
    return to_input(resize_and_crop(image, input_entry), input_entry)


def resize_and_crop(image: Any, input_entry: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return a PIL image at the model's size, still in 8 bits.

    The three ways are timm's (``timm.data.transforms_factory.transforms_imagenet_eval``): ``center`` resizes the
    shortest side and cuts the rest off, ``squash`` resizes both sides and gives up the aspect ratio, ``border``
    resizes the longest side and fills up with the mean colour.

    Returns:
        [height, width, channels], uint8.
    """
    from PIL import Image

    from tocom.decoding import check_resized

    _, channels, height, width = input_entry["shape"]
    mode = input_entry["crop_mode"]
    if 0 in image.size:
        raise ValueError(f"it holds no pixels: {image.width} x {image.height}")
    image = _in_channels(image, channels)
    size = resized_size(image.size, input_entry)
    check_resized(image, size)
    if size != image.size:
        image = image.resize(size, getattr(Image.Resampling, str(input_entry["interpolation"]).upper()))
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    if mode == "border":
        fill = tuple(round(255 * value) for value in input_entry["mean"])
        framed = Image.new(image.mode, (width, height), fill if channels > 1 else fill[0])
        # Where a frame is odd, timm puts the wider part right and below.
        left, top = (
            -((full - side) // 2) if side < full else cut
            for side, full, cut in ((image.width, width, left), (image.height, height, top))
        )
        framed.paste(image, (-left, -top))
        image = framed
    else:
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image).reshape(height, width, channels)


def resized_size(size: tuple[int, int], input_entry: Mapping[str, Any]) -> tuple[int, int]:
    """Return the width and height to which timm resizes an image of a width and height, before it crops."""
    (width, height), mode = size, input_entry["crop_mode"]
    tall, wide = (math.floor(side / input_entry["crop"]) for side in input_entry["shape"][2:])
    if mode == "squash":
        return wide, tall
    if mode == "center" and tall == wide:
        # torchvision's resize of the shortest side truncates the other one; timm's own resize rounds.
        return int(wide * width / min(size)), int(tall * height / min(size))
    ratio = (max if mode == "border" else min)(width / wide, height / tall)
    return max(round(width / ratio), 1), max(round(height / ratio), 1)


def _in_channels(image: Any, channels: int) -> Any:
    """Return the image as 8-bit grey or RGB."""
    from tocom.decoding import decoded

    if channels not in (1, 3):
        raise ValueError(f"the model takes {channels} channels, an image file gives 1 or 3: give it arrays")
    return decoded(image).convert("L" if channels == 1 else "RGB")


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
        # A link to a folder above leads around forever.
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            seen.add(real)
            yield from (Path(here, name) for name in files if not name.startswith("."))


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")

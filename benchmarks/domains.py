"""Three kinds of images that a compensator may meet: solar cells, photographs, handwritten digits.

Each comes in two parts: what compensators train on, and what they are tested on. Photographs are crops of pictures, and
no picture is in both parts. All are from PyPI, but for the ``other photographs``, which are from Debian's packages.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photographs import other_photographs
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from tocom.images import preprocess
from tocom.quickstart.cells import HELD_OUT, TEST, TRAIN, Split, split_cells
from tocom.quickstart.weights import installed_file

__all__ = ["DOMAINS", "Views", "cell_views", "quickstart_cells", "test_views", "training_views"]

DOMAINS = ("cells", "photographs", "digits")
TRAINING_VIEWS = TRAIN  # of each kind: no kind weighs more than another
OTHER_VIEWS = 1584  # as many as the quickstart leaves cells out
TEST_VIEWS = 64  # of photographs and of digits; of cells all 220
_SKIMAGE = ("astronaut.png", "brick.png", "camera.png", "clock_motion.png", "coffee.png", "coins.png", "grass.png")
_SKIMAGE += ("gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg")
TRAINING_PICTURES = [("scikit-image", f"skimage/data/{name}") for name in _SKIMAGE]
TEST_PICTURES = [
    ("scikit-image", "skimage/data/chelsea.png"),
    ("scikit-learn", "sklearn/datasets/images/china.jpg"),
    ("scikit-learn", "sklearn/datasets/images/flower.jpg"),
    ("matplotlib", "matplotlib/mpl-data/sample_data/grace_hopper.jpg"),
]


class Views(Dataset[Tensor]):
    """Views of pictures as model inputs [channels, height, width], float32.

    Args:
        pictures: What there is, or its files; view ``i`` is of picture ``i`` modulo their number.
        input_entry: From :func:`tocom.compression.loading.preprocessing.input_config`.
        count: How many views.
        least: Side of the smallest random square that is cut out, as a share of the shorter side; 1 cuts none out. The
            square of a view is always the same, so that a run can be resumed and repeated.
    """

    def __init__(
        self, pictures: Sequence[Image.Image | Path], input_entry: Mapping[str, Any], count: int, *, least: float = 1.0
    ) -> None:
        self.pictures, self.input_entry, self.count, self.least = pictures, input_entry, count, least

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        if index >= self.count:
            raise IndexError(index)  # ends iteration
        picture = self.pictures[index % len(self.pictures)]
        if isinstance(picture, Path):
            picture = Image.open(picture)
        if self.least < 1:
            draw = random.Random(index)
            side = round(min(picture.size) * draw.uniform(self.least, 1.0))
            left, top = (draw.randint(0, length - side) for length in picture.size)
            picture = picture.crop((left, top, left + side, top + side))
        return torch.from_numpy(preprocess(picture, self.input_entry))


def quickstart_cells() -> Split:
    """Return the cells as the quickstart parts them."""
    return split_cells(TRAIN, HELD_OUT, TEST)


def cell_views(part: str, input_entry: Mapping[str, Any]) -> Views:
    """Return the cells of a part, whole: ``train``, ``held_out`` to choose on, ``test``, or the ``rest``."""
    cells = getattr(quickstart_cells(), part)
    return Views([cell.path for cell in cells], input_entry, len(cells))


def training_views(domain: str, input_entry: Mapping[str, Any]) -> Views:
    """Return what compensators train on: cells whole, digits whole, photographs as random squares.

    Of the ``other`` kinds there are as many views as the quickstart leaves cells out: those cells, squares of
    Debian's photographs, other digits (each of 700 twice or more).
    """
    if domain == "cells":
        return cell_views("train", input_entry)
    if domain == "other cells":
        return cell_views("rest", input_entry)
    if domain == "digits":
        return Views(_digits()[:TRAINING_VIEWS], input_entry, TRAINING_VIEWS)
    if domain == "other digits":
        return Views(_digits()[TRAINING_VIEWS:1400], input_entry, OTHER_VIEWS)
    if domain == "other photographs":
        return Views(other_photographs(), input_entry, OTHER_VIEWS, least=0.3)
    return Views(_photographs(TRAINING_PICTURES), input_entry, TRAINING_VIEWS, least=0.3)


def test_views(domain: str, input_entry: Mapping[str, Any]) -> Views:
    """Return what they are tested on."""
    if domain == "cells":
        return cell_views("test", input_entry)
    if domain == "digits":
        return Views(_digits()[1400:], input_entry, TEST_VIEWS)
    return Views(_photographs(TEST_PICTURES), input_entry, TEST_VIEWS, least=0.3)


def _photographs(files: Sequence[tuple[str, str]]) -> list[Image.Image]:
    return [Image.open(installed_file(*file)).convert("RGB") for file in files]


def _digits() -> list[Image.Image]:
    from sklearn.datasets import load_digits

    # 8 × 8 pixels of 0 … 16; light on dark, as they are stored.
    return [Image.fromarray((digit / 16 * 255).astype(np.uint8)) for digit in load_digits().images]

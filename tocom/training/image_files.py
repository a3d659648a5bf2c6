"""Images for training and evaluation in torch, prepared as the runtime prepares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tocom.errors import DataError
from tocom.images import image_files, read_image

__all__ = ["ImageFiles"]


class ImageFiles(Dataset[Tensor]):
    """Image files as model inputs [channels, height, width], float32.

    The same resize, crop and normalisation as the runtime's, so that training sees what the device will see.

    Args:
        source: A folder (searched with its subfolders), or paths.
        input_entry: From :func:`tocom.compression.loading.preprocessing.input_config`, or a bundle's manifest.

    Raises:
        DataError: The folder is missing or holds no image.
    """

    def __init__(self, source: Path | str | Sequence[Path], input_entry: Mapping[str, Any]) -> None:
        self.paths = image_files(source) if isinstance(source, (str, Path)) else list(source)
        if not self.paths:
            raise DataError("The 'source' parameter must name at least one image. Got none.")
        self._entry = input_entry

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        if index >= len(self.paths):
            raise IndexError(index)  # ends iteration
        return torch.from_numpy(np.ascontiguousarray(read_image(self.paths[index], self._entry)))

"""What stands beside weights: how images are prepared, and what the classes are called."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tocom.compression.loading.files import Opened
from tocom.compression.loading.preprocessing import Preprocessing, timm_preprocessing
from tocom.errors import ModelError, RequestError

__all__ = ["labels_of", "preprocessing_of"]

# PIL's numbers, as Hugging Face's processors write them.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def preprocessing_of(opened: Opened) -> list[Preprocessing]:
    """Return what a checkpoint says of its images, the nearest first.

    Raises:
        ModelError: It says what the runtime's preprocessing does not do.
    """
    said = []
    try:
        if processor := opened.sidecars.get("preprocessor_config.json"):
            said.append(_of_processor(processor))
        if isinstance(arguments := opened.facts.get("args"), Mapping):
            said.append(timm_preprocessing(arguments, "the checkpoint's args"))
        for facts, origin in (
            (opened.sidecars.get("config.json", {}), "config.json"),
            (opened.facts, "the checkpoint"),
        ):
            if isinstance(config := facts.get("pretrained_cfg"), Mapping):
                said.append(timm_preprocessing(config, f"pretrained_cfg of {origin}"))
    except RequestError as error:
        raise ModelError(f"{opened.path}: {error} Pass another value: it is part of the model.") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{opened.path}: what it says of its images cannot be read: {error}.") from error
    return said


def labels_of(opened: Opened) -> list[str] | None:
    """Return the names of the classes in order, where the checkpoint brings them."""
    if text := opened.metadata.get("labels"):
        return text.split("\n")
    config = opened.sidecars.get("config.json", {})
    names = config.get("id2label")
    if isinstance(names, Mapping) and names:
        try:
            ordered = [str(names[key]) for key in sorted(names, key=int)]
        except ValueError:
            return None
        # Hugging Face's filler for classes that nobody named.
        return None if ordered == [f"LABEL_{index}" for index in range(len(ordered))] else ordered
    for entry in (config, config.get("pretrained_cfg") or {}):
        names = entry.get("label_names")
        if isinstance(names, list) and names:
            return [str(name) for name in names]
    return None


def _of_processor(says: Mapping[str, Any]) -> Preprocessing:
    """Return what a Hugging Face image processor does, in timm's words."""
    size, crop_size = says.get("size"), says.get("crop_size")
    is_cropped = bool(says.get("do_center_crop", crop_size is not None))
    resized = _height(size)
    crop = 1.0
    if is_cropped and resized and _height(crop_size):
        crop = _share(_height(crop_size), resized)
    if says.get("do_rescale", True) is False:
        raise ValueError("do_rescale is false, so the model takes pixels of 0 … 255")
    # timm takes pixels of 0 … 1 always, so another factor goes into mean and std.
    factor = round(255 * float(says.get("rescale_factor", 1 / 255)), 6)
    mean, std = says.get("image_mean"), says.get("image_std")
    if says.get("do_normalize", True) is False:
        mean, std = [0.0] * 3, [1.0] * 3
    keeps_ratio = isinstance(size, Mapping) and "shortest_edge" in size
    return Preprocessing(
        mean=None if mean is None else tuple(value / factor for value in mean),
        std=None if std is None else tuple(value / factor for value in std),
        interpolation=_RESAMPLE.get(says.get("resample", -1)),
        crop=crop,
        crop_mode="center" if keeps_ratio or (is_cropped and not isinstance(size, Mapping)) else "squash",
        origin="preprocessor_config.json",
    )


def _height(size: Any) -> int:
    if isinstance(size, Mapping):
        return int(size.get("height") or size.get("shortest_edge") or 0)
    return int(size or 0)


def _share(part: int, whole: int) -> float:
    """Return the crop whose division gives ``whole`` again: timm rounds ``part / crop`` down."""
    crop = part / whole
    return crop if math.floor(part / crop) == whole else part / (whole + 1e-9 * whole)

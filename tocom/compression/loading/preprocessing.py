"""What happens to an image before the model: part of the model, taken from whoever trained it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timm.data import resolve_data_config
from timm.models.vision_transformer import VisionTransformer

from tocom.errors import ModelError, RequestError
from tocom.formats.manifest import check_input_value

__all__ = ["FIELDS", "Preprocessing", "input_config", "resolve_input", "timm_preprocessing"]

FIELDS = ("mean", "std", "interpolation", "crop", "crop_mode")


@dataclass(frozen=True)
class Preprocessing:
    """What one source says of a model's preprocessing, in timm's words; None is what it leaves open.

    Attributes:
        mean: Subtracted from pixels of 0 … 1, one value per channel.
        std: Then divided by, one value per channel.
        interpolation: Of the resize: ``nearest``, ``bilinear``, ``bicubic``, ``box``, ``hamming`` or ``lanczos``.
        crop: Share of the resized side that the crop keeps, above 0 and at most 1.
        crop_mode: ``center``, ``squash`` or ``border``, as timm's ``crop_mode``.
        origin: Who says so, for people: ``--mean``, ``preprocessor_config.json`` say.

    Raises:
        RequestError: A value that timm's evaluation transform and this one do not have.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop: float | None = None
    crop_mode: str | None = None
    origin: str = "the caller"

    def __post_init__(self) -> None:
        for name in FIELDS:
            if (value := getattr(self, name)) is not None:
                try:
                    check_input_value(name, value)
                except ValueError as error:
                    raise RequestError(f"{self.origin}: {error}.") from error


def timm_preprocessing(config: Mapping[str, Any], origin: str) -> Preprocessing:
    """Return what a timm ``pretrained_cfg``, or the arguments of ``timm/train.py``, say; they may leave much open."""

    def numbers(name: str) -> tuple[float, ...] | None:
        value = config.get(name)
        return None if value is None else tuple(float(each) for each in value)

    return Preprocessing(
        mean=numbers("mean"),
        std=numbers("std"),
        interpolation=config.get("interpolation") or None,
        crop=config.get("crop_pct") or None,
        crop_mode=config.get("crop_mode") or None,
        origin=origin,
    )


def input_config(model: VisionTransformer) -> dict[str, Any]:
    """Return how images become the model's input by timm's config of it, as the bundle's manifest states it.

    Raises:
        ModelError: As :func:`resolve_input`.
    """
    return resolve_input(model)[0]


def resolve_input(
    model: VisionTransformer, *sources: Preprocessing, name: str = "the model"
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the manifest's ``input`` entry (batch left symbolic), and where each of its values comes from.

    Args:
        model: Its image size and channels are taken.
        sources: The first one that states a value wins; after them timm's config of the model.
        name: timm name, for people.

    Raises:
        ModelError: A mean or std of another length than the model has channels, or timm's config asks for what the
            runtime's preprocessing does not do.
    """
    channels = int(model.patch_embed.proj.in_channels)
    origin = f"timm's config of {name}"
    try:
        default = timm_preprocessing(resolve_data_config({}, model=model), origin)
    except RequestError as error:
        raise ModelError(f"{error} The runtime cannot prepare images like that. Pass another value.") from error
    entry: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for field in FIELDS:
        source = next(each for each in (*sources, default) if getattr(each, field) is not None)
        entry[field], origins[field] = getattr(source, field), source.origin
    for field in ("mean", "std"):
        if len(entry[field]) != channels:
            raise ModelError(
                f"The model takes {channels} channels, but its {field} has {len(entry[field])} values "
                f"({origins[field]}). Pass the {field} that it was trained with, one value per channel (--{field})."
            )
    height, width = model.patch_embed.img_size
    return {
        "name": "images",
        "dtype": "float32",
        "shape": ["batch", channels, int(height), int(width)],
        "mean": [float(value) for value in entry["mean"]],
        "std": [float(value) for value in entry["std"]],
        "interpolation": str(entry["interpolation"]),
        "crop": float(entry["crop"]),
        "crop_mode": str(entry["crop_mode"]),
    }, origins

"""Options of the verbs that load a model, the same in all of them, and what was made of them."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tocom.cli.app import output
from tocom.errors import DataError, RequestError

if TYPE_CHECKING:
    from tocom.compression.loading.model import LoadedModel

__all__ = [
    "Adapter",
    "Crop",
    "CropMode",
    "ImageSize",
    "InChans",
    "Interpolation",
    "Mean",
    "ModelKwargs",
    "ModelName",
    "MoreKwargs",
    "NumClasses",
    "Std",
    "WeightsKey",
    "describe_input",
    "load",
    "parse_size",
    "print_loaded",
    "read_labels",
]

_FIELDS = ("mean", "std", "interpolation", "crop", "crop_mode")

ModelName = Annotated[
    str | None, typer.Option(help="timm model name; may be left out where the checkpoint says what it is.")
]
Adapter = Annotated[Path | None, typer.Option(help="Folder of a LoRA of peft, merged into the weights.")]
WeightsKey = Annotated[
    str | None, typer.Option(help="Set of weights to take where a file holds several: state_dict_ema, teacher …")
]
NumClasses = Annotated[int | None, typer.Option(help="Classes of the head, 0 for features; default: the checkpoint's.")]
ImageSize = Annotated[
    str | None, typer.Option(help="Pixels: a side, or height,width; default: the checkpoint's, or the model's.")
]
InChans = Annotated[int | None, typer.Option(help="Channels of the image; default: the checkpoint's.")]
ModelKwargs = Annotated[
    list[str] | None,
    typer.Option(help="More options of timm's create_model: global_pool=avg qk_norm=true; repeatable."),
]
# What follows the first pair of --model-kwargs stands where arguments stand.
MoreKwargs = Annotated[list[str] | None, typer.Argument(hidden=True, metavar="")]
Mean = Annotated[str | None, typer.Option(help="Mean of the pixels of 0 … 1: 0.485,0.456,0.406.")]
Std = Annotated[str | None, typer.Option(help="Standard deviation of them: 0.229,0.224,0.225.")]
Interpolation = Annotated[
    str | None, typer.Option(help="Of the resize: bilinear, bicubic, nearest, box, hamming or lanczos.")
]
Crop = Annotated[float | None, typer.Option(help="Share of the resized side that the crop keeps: 0.875.")]
CropMode = Annotated[
    str | None,
    typer.Option(help="center (shortest side resized), squash (both), or border (longest, and a frame)."),
]


def load(
    model: str | None,
    *,
    weights: str = "pretrained",
    adapter: Path | None,
    weights_key: str | None,
    num_classes: int | None,
    image_size: str | None,
    in_chans: int | None,
    model_kwargs: list[str],
    mean: str | None,
    std: str | None,
    interpolation: str | None,
    crop: float | None,
    crop_mode: str | None,
) -> LoadedModel:
    """Load a model as the options ask for.

    Raises:
        RequestError: An option is none that can be read.
        ModelError: As :func:`tocom.compression.loading.model.load_model`.
    """
    from tocom.compression.loading.model import load_model
    from tocom.compression.loading.preprocessing import Preprocessing

    given = Preprocessing(
        mean=None if mean is None else _numbers("mean", mean),
        std=None if std is None else _numbers("std", std),
        interpolation=interpolation,
        crop=crop,
        crop_mode=crop_mode,
        origin="as asked",
    )
    return load_model(
        model,
        weights=weights,
        adapter=adapter,
        weights_key=weights_key,
        num_classes=num_classes,
        image_size=None if image_size is None else parse_size(image_size),
        in_chans=in_chans,
        model_options=dict(_pair(text) for part in model_kwargs for text in part.split()),
        preprocessing=given,
    )


def parse_size(text: str) -> int | tuple[int, int]:
    """Read a side in pixels, or ``height,width``.

    Raises:
        RequestError: It is neither.
    """
    try:
        sides = [int(part) for part in text.split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise RequestError(f"The 'image-size' option must be a side or height,width in pixels (224,448). Got {text!r}.")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def print_loaded(loaded: LoadedModel) -> None:
    """Print what was taken of the checkpoint, and what happens to images and where that comes from."""
    lines = [f"model {loaded.name}: {loaded.taken}"] if loaded.taken else [f"model {loaded.name}"]
    for line in [*lines, *(f"  {line}" for line in describe_input(loaded.input_entry, loaded.origins))]:
        output.print(line, markup=False, highlight=False, soft_wrap=True)


def describe_input(entry: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    """Return one line per value of a manifest's ``input`` entry: what it is, and where it comes from."""
    _, channels, height, width = entry["shape"]
    values = {"size": f"{channels} × {height} × {width}", **{name: entry[name] for name in _FIELDS}}
    lines = [f"{name.replace('_', ' ')} {value} ({origins.get(name, 'not said')})" for name, value in values.items()]
    return [*lines, *(["images enter as pixels, uint8: the graph normalises"] if entry.get("dtype") == "uint8" else [])]


def read_labels(path: Path) -> list[str]:
    """Return class names from a text file with one per line, or from JSON: a list, or a map of index and name.

    Raises:
        DataError: It cannot be read, is no such file, or names a class twice.
    """
    from tocom.images import as_seen  # with numpy, which the command line's start does without

    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _json_labels(text) if text.lstrip()[:1] in ("[", "{") and text.rstrip()[-1:] in ("]", "}") else None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(
            f"Cannot read the labels {path}: {error}. It must be text with one class name per line, or JSON: a list, "
            'or {"0": "name", …}.'
        ) from error
    if names is None:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    seen = [as_seen(name) for name in names]
    twice = next((name for name in seen if seen.count(name) > 1), None) if len(set(seen)) < len(seen) else None
    if twice is not None or not names:
        what = f"names {twice!r} twice" if names else "names no class"
        raise DataError(f"The labels {path} are not usable: the file {what}. Give one name per class, each once.")
    return names


def _json_labels(text: str) -> list[str]:
    content = json.loads(text)
    if isinstance(content, dict):
        content = content.get("id2label", content)
        if all(isinstance(value, int) for value in content.values()):  # name → index, as label2id
            content = {value: key for key, value in content.items()}
        if sorted(map(int, content)) != list(range(len(content))):
            raise ValueError(f"its indices are not 0 … {len(content) - 1}, each once")
        # Keras and torchvision write ["n01440764", "tench"]: the readable name is the last.
        content = [content[key] for key in sorted(content, key=int)]
    names = [value[-1] if isinstance(value, list) and value else value for value in content]
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError("a class has no name")
    return [name.strip() for name in names]


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise RequestError(f"The {name!r} option must be numbers, one per channel (0.5,0.5). Got {text!r}.") from error


def _pair(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found or not name.isidentifier():
        raise RequestError(f"The 'model-kwargs' option must be name=value (global_pool=avg). Got {text!r} instead.")
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return name, words[value.lower()]
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value

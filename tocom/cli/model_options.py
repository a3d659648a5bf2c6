"""Options of the verbs that load a model, the same in all of them, and what was made of them."""

from __future__ import annotations

import ast
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tocom.cli.app import output
from tocom.cli.options import MergeBlocks, Method, Spacing, asked_family, read_by, reading
from tocom.errors import DataError, RequestError

if TYPE_CHECKING:
    from tocom.compression.loading.model import LoadedModel

__all__ = [
    "CompressionOptions",
    "ModelOptions",
    "describe_input",
    "parse_size",
    "print_loaded",
    "read_labels",
    "with_option_groups",
]

_FIELDS = ("mean", "std", "interpolation", "crop", "crop_mode")


def parse_size(text: str) -> int | tuple[int, int]:
    """Read a side in pixels, or ``height,width``.

    Raises:
        RequestError: It is neither.
    """
    with reading("image-size", text, "a side or height,width in pixels (224,448)"):
        sides = [int(part) for part in text.split(",")]
        if min(sides) < 1:
            raise ValueError(text)
        if len(sides) == 1:
            return sides[0]
        height, width = sides
        return height, width


def _numbers(name: str) -> Callable[[str], tuple[float, ...]]:
    def read(text: str) -> tuple[float, ...]:
        with reading(name, text, "numbers, one per channel (0.5,0.5)"):
            return tuple(float(part) for part in text.replace(",", " ").split())

    return read


@dataclass(frozen=True)
class ModelOptions:
    """Which model to load, as the command line says it. Of every field there is an option."""

    model: Annotated[
        str | None, typer.Option(help="timm model name; may be left out where the checkpoint says what it is.")
    ] = None
    weights_key: Annotated[
        str | None, typer.Option(help="Set of weights to take where a file holds several: state_dict_ema, teacher …")
    ] = None
    adapter: Annotated[Path | None, typer.Option(help="Folder of a LoRA of peft, merged into the weights.")] = None
    num_classes: Annotated[
        int | None, typer.Option(help="Classes of the head, 0 for features; default: the checkpoint's.")
    ] = None
    image_size: Annotated[
        Any, read_by(parse_size, "Pixels: a side, or height,width; default: the checkpoint's, or the model's.")
    ] = None
    in_chans: Annotated[int | None, typer.Option(help="Channels of the image; default: the checkpoint's.")] = None
    model_kwargs: Annotated[
        list[str] | None,
        typer.Option(help="More options of timm's create_model: global_pool=avg qk_norm=true; repeatable."),
    ] = None
    # What follows the first pair of --model-kwargs stands where arguments stand.
    more_kwargs: Annotated[list[str] | None, typer.Argument(hidden=True, metavar="")] = None
    mean: Annotated[Any, read_by(_numbers("mean"), "Mean of the pixels of 0 … 1: 0.485,0.456,0.406.")] = None
    std: Annotated[Any, read_by(_numbers("std"), "Standard deviation of them: 0.229,0.224,0.225.")] = None
    interpolation: Annotated[
        str | None, typer.Option(help="Of the resize: bilinear, bicubic, nearest, box, hamming or lanczos.")
    ] = None
    crop: Annotated[float | None, typer.Option(help="Share of the resized side that the crop keeps: 0.875.")] = None
    crop_mode: Annotated[
        str | None,
        typer.Option(help="center (shortest side resized), squash (both) or border (longest, and a frame)."),
    ] = None

    def load(self, weights: str) -> LoadedModel:
        """Load the model.

        Args:
            weights: Checkpoint, ``pretrained`` or ``random``.

        Raises:
            RequestError: An option cannot be read.
            ModelError: As :func:`tocom.compression.loading.model.load_model`.
        """
        from tocom.compression.loading.model import load_model
        from tocom.compression.loading.preprocessing import Preprocessing

        pairs = [*(self.model_kwargs or []), *(self.more_kwargs or [])]
        return load_model(
            self.model,
            weights=weights,
            adapter=self.adapter,
            weights_key=self.weights_key,
            num_classes=self.num_classes,
            image_size=self.image_size,
            in_chans=self.in_chans,
            model_options=dict(_pair(text) for part in pairs for text in part.split()),
            preprocessing=Preprocessing(
                mean=self.mean,
                std=self.std,
                interpolation=self.interpolation,
                crop=self.crop,
                crop_mode=self.crop_mode,
                origin="as asked",
            ),
        )


@dataclass(frozen=True)
class CompressionOptions:
    """How the degrees of a model run, as the command line says it. Of every field there is an option."""

    compensator: Annotated[Path | None, typer.Option(help="Compensator that the degrees run with (.safetensors).")] = (
        None
    )
    scale: Annotated[float | None, typer.Option(help="Scale of the compensator; default: the file's.")] = None
    source_degree: Annotated[int, typer.Option(help="Degree that the model was fine-tuned at.")] = 0
    method: Method = "merge"
    merge_blocks: MergeBlocks = None
    every: Spacing = None
    fuse: Annotated[bool, typer.Option(help="With prune: fuse the removed tokens into one.")] = False

    def read(self) -> Callable[[LoadedModel], dict[str, Any]]:
        """Return what gives the arguments of a function for a model, once all that needs no model is read.

        Raises:
            RequestError: Two options do not go together.
            CompensatorError: The compensator cannot be read.
        """
        from tocom.compensator.compensator import Compensator

        family = asked_family(self.merge_blocks, self.every)
        part = None if self.compensator is None else Compensator.load(self.compensator)
        return lambda loaded: {
            "compensator": part,
            "scale": self.scale,
            "source_degree": self.source_degree,
            "method": self.method,
            "family": family(len(loaded.model.blocks)),
            "fuse": self.fuse,
        }


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with an option for every field of each dataclass that it takes."""
    own = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        if is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            parameters += inspect.signature(groups[name], eval_str=True).parameters.values()
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**made, **given)

    shown = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = own.replace(parameters=shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


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
        DataError: It cannot be read, is not such a file, or names a class twice.
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

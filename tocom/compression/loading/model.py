"""Load a timm Vision Transformer by name, with weights from a hub, a file, or none."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tocom.compression.surgery import check_supported
from tocom.errors import ModelError

__all__ = ["LoadedModel", "load_model"]


@dataclass(frozen=True)
class LoadedModel:
    """A model and where its weights come from.

    Attributes:
        model: In evaluation mode.
        name: timm name.
        weights: ``pretrained``, ``file`` or ``random``, as the bundle's manifest states it.
        labels: Names of the classes where the checkpoint brought them.
    """

    model: VisionTransformer
    name: str
    weights: str
    labels: list[str] | None = None


def load_model(
    name: str,
    *,
    weights: str | Path = "pretrained",
    num_classes: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Create a timm Vision Transformer and load its weights strictly.

    Args:
        name: timm name, ``deit_small_patch16_224`` say.
        weights: ``pretrained`` (timm's hub), ``random`` (seeded; for timing only), or a checkpoint file:
            safetensors, or a state dict written by torch.save.
        num_classes: Classes of the head; 0 for features. Without it, what the checkpoint file or timm's default has.
        image_size: Side of the square image in pixels; without it the model's own.
        seed: Of the random weights.

    Raises:
        ModelError: The name is unknown, the model is not supported, or the checkpoint does not fit.
    """
    options: dict[str, Any] = {}
    state: dict[str, Tensor] | None = None
    labels: list[str] | None = None
    origin = str(weights)
    if origin not in ("pretrained", "random"):
        state, labels = _read_checkpoint(Path(weights))
        origin = "file"
        if num_classes is None:
            num_classes = _classes_of(state)
    if num_classes is not None and num_classes < 0:
        raise ModelError(f"The 'num_classes' parameter must be 0 (for features) or more. Got {num_classes} instead.")
    if num_classes is not None:
        options["num_classes"] = num_classes
    if image_size is not None:
        options["img_size"] = image_size
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*patch*")[:5]
        hint = f" Near it: {', '.join(near)}." if near else ""
        raise ModelError(f"The 'model' parameter must be a timm model name. Got {name!r} instead.{hint}")
    torch.manual_seed(seed)
    try:
        model = timm.create_model(name, pretrained=origin == "pretrained", **options)
    except Exception as error:  # timm and its hub client raise all kinds; each one ends here, told apart by its text
        if origin == "pretrained":
            raise ModelError(
                f"Cannot load pretrained weights of {name}: {_first_line(error)}. Without access to timm's hub, pass "
                "--weights FILE with a checkpoint, or --weights random for timing alone."
            ) from error
        raise ModelError(f"Cannot create {name} with {options}: {_first_line(error)}.") from error
    check_supported(model)
    if state is not None:
        _load_strict(model, name, Path(weights), state)
    return LoadedModel(model.eval(), name, origin, labels)


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path), _labels_of(path)
        # weights_only: a pickle may run code, a checkpoint must not.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(
            f"The 'weights' parameter must be 'pretrained', 'random' or a checkpoint file. {path} does not exist."
        ) from error
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(
            f"Cannot read the checkpoint {path}: {_first_line(error)}. It must be safetensors, or a state dict of "
            "tensors alone written by torch.save."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path} holds no state dict of tensors. Save model.state_dict().")
    return content, None


def _labels_of(path: Path) -> list[str] | None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("labels")
    return text.split("\n") if text else None


def _classes_of(state: dict[str, Tensor]) -> int | None:
    head = state.get("head.weight")
    return int(head.shape[0]) if head is not None else 0


def _load_strict(model: VisionTransformer, name: str, path: Path, state: dict[str, Tensor]) -> None:
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    got = {key: tuple(tensor.shape) for key, tensor in state.items()}
    problems = [f"missing {key}" for key in expected if key not in got]
    problems += [f"unexpected {key}" for key in got if key not in expected]
    problems += [
        f"{key} has shape {got[key]}, expected {expected[key]}"
        for key in expected
        if got.get(key, expected[key]) != expected[key]
    ]
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise ModelError(
            f"The checkpoint {path} does not fit {name}: {shown}. Check the name, --num-classes and --image-size."
        )
    model.load_state_dict(state, strict=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")

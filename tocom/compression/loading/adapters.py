"""Adapters on projections: peft's LoRA is merged into the weights it was trained on, others are refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tocom.compression.loading.files import read_json
from tocom.compression.loading.readers.hugging_face_vit import canonical
from tocom.errors import ModelError, first_line

__all__ = ["merge_adapter"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What of peft's LoraConfig (peft/tuners/lora/config.py) changes the sum, and that we do not do.
_NOT_DONE = {
    "use_dora": "DoRA",
    "fan_in_fan_out": "transposed weights",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "aLoRA",
}


def merge_adapter(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return a checkpoint's tensors with the LoRA of a peft folder merged in: ``W + alpha / rank · B A``.

    Args:
        tensors: Tensors of the weights that the adapter was trained on, by their own names.
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        ModelError: It is not an adapter, one of another kind, or one of another model.
    """
    config, adapter = _read(folder)
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise ModelError(
            f"The adapter {folder} is {kind}. Only LoRA is merged; merge it with peft, and save the model."
        )
    for name, what in _NOT_DONE.items():
        if config.get(name):
            raise ModelError(f"The adapter {folder} is LoRA with {what}, which is not merged here. Merge it with peft.")
    merged = {canonical(name): tensor for name, tensor in tensors.items()}
    done: set[str] = set()
    for name in adapter:
        if not name.endswith(".lora_A.weight"):
            continue
        layer, other = name.removesuffix(".lora_A.weight"), name.replace(".lora_A.", ".lora_B.")
        if other not in adapter:
            raise ModelError(f"The adapter {folder} lacks {other}. Copy it again.")
        done |= {name, other}
        key = _target(f"{layer}.weight", merged, folder)
        down, up, weight = adapter[name].float(), adapter[other].float(), merged[key]
        if down.ndim != 2 or (up.shape[0], down.shape[1]) != tuple(weight.shape) or up.shape[1] != down.shape[0]:
            raise ModelError(
                f"The adapter {folder} does not fit {key} {tuple(weight.shape)}: it has {tuple(up.shape)} times "
                f"{tuple(down.shape)}. Pass the weights that it was trained on."
            )
        try:
            scale = _scale(config, layer.removeprefix("base_model.model."), down.shape[0])
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise ModelError(f"{folder / _CONFIG}: its alpha cannot be read ({error}). Copy it again.") from error
        delta = scale * (up @ down)
        merged[key] = (weight.float() + delta).to(weight.dtype)
    if not done:
        raise ModelError(f"The adapter {folder} holds no LoRA weights (….lora_A.weight). Copy it again.")
    for name in adapter.keys() - done:  # modules_to_save: layers that were trained whole, the classifier say
        if "lora_" in name:
            raise ModelError(f"The adapter {folder} holds {name}, which is not merged here. Merge it with peft.")
        merged[_target(name, merged, folder)] = adapter[name]
    return merged


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not (folder / _CONFIG).is_file() or not (folder / _WEIGHTS).is_file():
        raise ModelError(
            f"The 'adapter' parameter must be a folder of peft with {_CONFIG} and {_WEIGHTS}. Got {folder}."
        )
    try:
        return read_json(folder / _CONFIG), load_file(folder / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"Cannot read the adapter {folder}: {first_line(error)}. Copy it again.") from error


def _target(name: str, tensors: Mapping[str, Tensor], folder: Path) -> str:
    key = canonical(
        name.removeprefix("base_model.model.").replace(".modules_to_save.", ".").replace(".base_layer.", ".")
    )
    if key in tensors:
        return key
    ends = [each for each in tensors if each.endswith(f".{key}")]
    if len(ends) == 1:
        return ends[0]
    raise ModelError(
        f"The adapter {folder} changes {key}, which the weights do not have. They begin with {next(iter(tensors))}. "
        "Pass the weights that it was trained on."
    )


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    alpha = float(config.get("lora_alpha", rank))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            alpha = float(value)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)

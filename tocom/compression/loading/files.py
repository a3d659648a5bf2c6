"""Open a checkpoint, a file or a folder, and execute nothing of it."""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from tocom.errors import ModelError, first_line

__all__ = ["Opened", "open_checkpoint", "read_json"]

# Weights that a folder of each library holds, the first that is there.
_WEIGHTS = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
_SIDECARS = ("config.json", "preprocessor_config.json", "open_clip_config.json")
_MAX_DEPTH = 8
_FOREIGN = {
    ".onnx": "an ONNX model: its weights have no names of layers to go by",
    ".engine": "a TensorRT engine",
    ".plan": "a TensorRT engine",
    ".h5": "a Keras file",
    ".keras": "a Keras file",
    ".msgpack": "a Flax file",
    ".gguf": "a GGUF file",
    ".tflite": "a TensorFlow Lite model",
    ".pb": "a TensorFlow graph",
}


@dataclass(frozen=True)
class Opened:
    """What a checkpoint holds, before anyone knows what it is.

    Attributes:
        path: The file of weights, or the folder.
        tensors: Every tensor by its dotted path: nested dictionaries are laid flat.
        facts: What stands beside the tensors in the file: epoch, args, arch, …
        sidecars: JSON files beside the weights, by name.
        metadata: Metadata of a safetensors file.
    """

    path: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    sidecars: dict[str, dict[str, Any]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def open_checkpoint(path: Path) -> Opened:
    """Return the tensors of a checkpoint and what is said beside them.

    Args:
        path: A file of safetensors or torch.save, or a folder of Hugging Face, timm or open_clip.

    Raises:
        ModelError: It does not exist, is damaged, is of another format, or would execute code.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise ModelError(
            f"The 'weights' parameter must be 'pretrained', 'random' or a checkpoint. {path} does not exist."
        )
    sidecars = {name: read_json(path.parent / name) for name in _SIDECARS if path.name in _WEIGHTS}
    return _open_file(path, {name: content for name, content in sidecars.items() if content})


def _open_folder(path: Path) -> Opened:
    if (path / "bundle.json").exists():
        raise ModelError(f"{path} is a bundle, which is exported already. Give the checkpoint that it came from.")
    if (path / "adapter_config.json").exists():
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path")
        raise ModelError(
            f"{path} is an adapter, not a model: pass the weights that it was trained on ({base or 'its base'}) with "
            f"--weights, and this folder with --adapter."
        )
    name = next((name for name in _WEIGHTS if (path / name).exists()), None)
    if name is None:
        raise ModelError(f"{path} holds no weights. Expected one of {', '.join(_WEIGHTS)}; or give the file itself.")
    sidecars = {each: read_json(path / each) for each in _SIDECARS if (path / each).exists()}
    if not name.endswith(".index.json"):
        return _open_file(path / name, sidecars)
    shards = sorted(set(read_json(path / name).get("weight_map", {}).values()))
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise ModelError(f"{path / name} points out of its folder: {shard!r}. Do not use this checkpoint.")
        tensors.update(_open_file(path / shard, {}).tensors)
    return Opened(path, tensors, sidecars=sidecars)


def _open_file(path: Path, sidecars: dict[str, dict[str, Any]]) -> Opened:
    if path.suffix.lower() in _FOREIGN:
        raise ModelError(
            f"{path} is {_FOREIGN[path.suffix.lower()]}. Give the PyTorch checkpoint: safetensors, or a state dict."
        )
    if _is_torchscript(path):  # OpenAI's CLIP files are
        raise ModelError(
            f"Cannot read the checkpoint {path}: it is a TorchScript archive, which is a program. Load it with its own "
            "library, and save model.state_dict()."
        )
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
            return Opened(path, load_file(path), sidecars=sidecars, metadata=metadata)
        # timm/train.py keeps its arguments in one, which holds values alone. Nothing else is let in.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # weights_only: a pickle may run code, a checkpoint must not.
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(f"Cannot read the checkpoint {path}: {_of_pickle(path, error)}") from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ModelError(
            f"Cannot read the checkpoint {path}: {first_line(error)}. It must be safetensors, or "
            "a state dict of tensors written by torch.save; if it should be one, copy it again."
        ) from error
    tensors: dict[str, Tensor] = {}
    _lay_flat(content, "", tensors)
    if not tensors:
        raise ModelError(f"{path} holds no state dict of tensors. Save model.state_dict().")
    tops = {key.split(".")[0] for key in tensors}
    facts = (
        {str(key): value for key, value in content.items() if str(key) not in tops}
        if isinstance(content, Mapping)
        else {}
    )
    facts = {key: vars(value) if isinstance(value, argparse.Namespace) else value for key, value in facts.items()}
    return Opened(path, tensors, facts, sidecars)


def _lay_flat(content: Any, prefix: str, tensors: dict[str, Tensor], depth: int = 0) -> None:
    if isinstance(content, Tensor) and prefix:
        tensors[prefix] = content
    elif isinstance(content, Mapping) and depth < _MAX_DEPTH:  # a pickle may hold itself
        for key, value in content.items():
            _lay_flat(value, f"{prefix}.{key}" if prefix else str(key), tensors, depth + 1)


def _of_pickle(path: Path, error: pickle.UnpicklingError) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # an old or damaged file; what torch.load said stands
        names = []
    if names:
        return (
            f"it would execute {', '.join(sorted(names)[:3])}{' …' if len(names) > 3 else ''} to be read, which tocom "
            "never does. Load it where you trust it, and save model.state_dict() alone."
        )
    return f"{first_line(error)}. It must be safetensors, or a state dict of tensors written by torch.save."


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds, an empty one where there is no file; raise ModelError for others."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"Cannot read {path}: {first_line(error)}. It must be JSON.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold an object. Got a {type(content).__name__}.")
    return content

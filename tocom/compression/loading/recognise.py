"""Find out what a checkpoint holds, and take one set of weights of it by timm's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from tocom.compression.loading.files import Opened
from tocom.compression.loading.readers import (
    hugging_face_clip,
    hugging_face_vit,
    mmpretrain_vit,
    open_clip_vit,
    timm_names,
    torchvision_vit,
)
from tocom.compression.loading.readers.part import Found, Part
from tocom.errors import ModelError

__all__ = ["Taken", "recognise"]

_READERS = (hugging_face_vit, hugging_face_clip, torchvision_vit, mmpretrain_vit, open_clip_vit, timm_names)
# What wrappers put into names: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Which set is taken where there are several: averaged weights, then the trained ones, then what is second by design.
_AVERAGED = re.compile(r"(^|[._])(ema|teacher|averaged|swa)([._]|$)")
_SECOND = re.compile(r"(^|\.)(student|target_encoder|optimizer|momentum_encoder)(\.|$)")
# The signs of what is not a plain Vision Transformer, or no model at all, in the order to look for them.
_STRANGERS = (
    (r"lora_[AB]|lora_(down|up)", "LoRA weights that are not merged"),
    (r"(hada_w|lokr_w|oft_[rR]|ia3_l|vera_lambda)", "the weights of an adapter"),
    (r"relative_position_bias_table$|\.window_", "a Swin Transformer"),
    (r"relative_position_bias|rel_pos", "a Vision Transformer with relative positions (BEiT, SAM)"),
    (r"rope|inv_freq|attention\.q_proj.*layer_scale", "a Vision Transformer with rotary positions"),
    (r"^(.*\.)?layer[1-4]\.0\.conv", "a ResNet"),
    (r"stages\.\d+\.", "a hierarchical model (ConvNeXt, MViT, EfficientViT)"),
    (r"model\.diffusion_model|unet", "a diffusion model"),
    (r"transformer\.h\.0|model\.layers\.0\.self_attn|bert\.|encoder\.block\.0", "a language model"),
    (r"^(state\.\d+\.)?exp_avg|param_groups", "an optimizer's state"),
)


@dataclass(frozen=True)
class Taken:
    """One set of weights of a checkpoint, and what to say of it.

    Attributes:
        found: The weights, as the family's reader returned them.
        notes: Which they are, for people.
        loose_head: A tensor beside the backbone that looks like a classifier and was not taken, or None.
    """

    found: Found
    notes: tuple[str, ...]
    loose_head: str | None


def recognise(opened: Opened, key: str | None = None) -> Taken:
    """Return the weights of a checkpoint by timm's names.

    Args:
        opened: The checkpoint.
        key: Prefix of the set to take, ``state_dict_ema`` say; None takes averaged weights before others.

    Raises:
        ModelError: Nothing of it is a Vision Transformer that tocom reads, or several are and none is first.
    """
    tensors = {hugging_face_vit.canonical(_WRAPPERS.sub("", name)): tensor for name, tensor in opened.tensors.items()}
    readable = _candidates(tensors)
    if key is not None:
        readable = [(reader, prefix) for reader, prefix in readable if f"{prefix}.".startswith(f"{key.rstrip('.')}.")]
        if not readable:
            sets = [prefix.rstrip(".") or "(the top)" for _, prefix in _candidates(tensors)]
            raise ModelError(f"{opened.path} has no set of weights under {key!r}. It has: {', '.join(sets) or 'none'}.")
    if any(re.search(_STRANGERS[0][0], name) for name in tensors) or not readable:
        raise ModelError(_refusal(opened.path, opened.tensors))
    best = min(_rank(prefix) for _, prefix in readable)
    first = [(reader, prefix) for reader, prefix in readable if _rank(prefix) == best]
    if len(first) > 1:
        shown = ", ".join(repr(prefix) for _, prefix in first[:4])
        raise ModelError(
            f"{opened.path} holds {len(first)} models, under {shown}, and none of them is the first by its name. Say "
            "which with --weights-key."
        )
    reader, prefix = first[0]
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    beside = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    config = opened.sidecars.get("config.json") or opened.sidecars.get("open_clip_config.json") or {}
    part = Part(inside, prefix, beside, config, opened.facts)
    read = timm_names.read_whole if reader is None else reader.read
    found = read(part)
    if found.preprocessing is None and "open_clip_config.json" in opened.sidecars:
        found = replace(found, preprocessing=open_clip_vit.open_clip_preprocessing(config))
    others = [each for _, each in readable if each != prefix]
    return Taken(found, _notes(found, prefix, others, opened), _loose_head(part, found))


def _candidates(tensors: Mapping[str, Tensor]) -> list[tuple[object, str]]:
    """Return every reader whose anchors stand in the checkpoint, with the prefix before them."""
    readable: list[tuple[object, str]] = []
    if any(anchor in tensors for anchor in timm_names.WHOLE_ANCHORS):
        return [(None, "")]
    for reader in _READERS:
        first, *rest = reader.ANCHORS
        for name in tensors:
            prefix = name.removesuffix(first)
            if name.endswith(first) and prefix[-1:] in ("", ".") and all(f"{prefix}{each}" in tensors for each in rest):
                readable.append((reader, prefix))
    return readable


def _rank(prefix: str) -> int:
    return 2 if _SECOND.search(prefix) else 0 if _AVERAGED.search(prefix) else 1


def _notes(found: Found, prefix: str, others: list[str], opened: Opened) -> tuple[str, ...]:
    notes = [found.family]
    averaged = "averaged (EMA) weights" if _AVERAGED.search(prefix) and "teacher" not in prefix else "weights"
    if (epoch := opened.facts.get("epoch")) is not None:
        averaged += f" of epoch {epoch}"
    notes.append(averaged + (f" under {prefix}" if prefix else ""))
    if others:
        notes.append(f"not those under {', '.join(each or '(the top)' for each in others)}")
    if found.taken:
        notes.append(f"with {', '.join(found.taken)}")
    if found.left_out:
        notes.append(f"left out: {', '.join(found.left_out)}")
    return tuple(notes)


def _loose_head(part: Part, found: Found) -> str | None:
    """Return a matrix beside a backbone without a head that reads the backbone's features, if there is one."""
    if "head.weight" in found.state or "visual.proj" in found.state or not part.prefix:
        return None
    width = next(
        tensor for name, tensor in found.state.items() if name.endswith(("proj.weight", "conv1.weight"))
    ).shape[0]
    parent = part.prefix.rpartition(".")[0].rpartition(".")[0]
    pattern = re.compile(
        rf"{re.escape(f'{parent}.' if parent else '')}(head|heads|classifier|fc|linear|cls_head)[.\w]*weight"
    )
    for name, tensor in part.beside.items():
        projection = re.search(r"(^|\.)(head\.(mlp|last_layer)|dino_head|ibot_head)", name)
        if pattern.fullmatch(name) and tensor.ndim == 2 and tensor.shape[1] % width == 0 and not projection:
            return name
    return None


def _refusal(path: Path, tensors: Mapping[str, Tensor]) -> str:
    names = ", ".join(list(tensors)[:3])
    what = next((what for sign, what in _STRANGERS if any(re.search(sign, name) for name in tensors)), None)
    if what is not None and ("LoRA" in what or "adapter" in what):
        return (
            f"{path} looks like {what} ({names} …). Merge them where they were trained (peft: "
            "model.merge_and_unload()) and save again; a folder of peft's LoRA goes beside its base with --adapter."
        )
    return (
        f"{path} looks like {what or 'nothing that tocom knows'}: its keys are {names} … Expected a plain Vision "
        "Transformer of timm, Hugging Face (ViT, DeiT, DINOv2, CLIP, SigLIP, MAE, I-JEPA), torchvision, mmpretrain or "
        "open_clip. Give its checkpoint, or load it yourself and save model.state_dict() by timm's names."
    )

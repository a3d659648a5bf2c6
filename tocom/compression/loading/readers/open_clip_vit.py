"""open_clip's own Vision Transformer; timm's filter knows its names (``visual.transformer.resblocks.…``)."""

from __future__ import annotations

from typing import Any

from tocom.compression.loading.preprocessing import Preprocessing
from tocom.compression.loading.readers.part import Found, Part, named_by_size, sizes

__all__ = ["ANCHORS", "open_clip_preprocessing", "read"]

ANCHORS = ("transformer.resblocks.0.ln_1.weight", "class_embedding", "conv1.weight")
# open_clip/transform.py: what its image_transform does for each resize_mode.
_CROP_MODES = {"shortest": "center", "squash": "squash", "longest": "border"}


def read(part: Part) -> Found:
    """Return the weights, named as timm's filter takes them. See :class:`Found`."""
    model: dict[str, Any] = part.config.get("model_cfg", {})
    vision: dict[str, Any] = model.get("vision_cfg", {})
    tensors = part.tensors
    like_timm = {f"blocks.{key.split('.')[2]}.": value for key, value in tensors.items() if ".resblocks." in key}
    like_timm["patch_embed.proj.weight"] = tensors["conv1.weight"]
    like_timm["blocks.0.mlp.fc1.weight"] = tensors["transformer.resblocks.0.mlp.c_fc.weight"]
    like_timm["pos_embed"] = tensors["positional_embedding"].unsqueeze(0)
    width = tensors["conv1.weight"].shape[0]
    facts = sizes(like_timm, prefix=1, heads=width // vision.get("head_width", 64))
    name = None
    if model:
        stem = "vit_{word}_patch{patch}_clip_" + ("quickgelu_224" if model.get("quick_gelu") else "224")
        name = named_by_size(stem, stem.format(word="base", patch=32), facts)
    return Found(
        "open_clip's ViT",
        {f"visual.{key}": value for key, value in tensors.items()},
        name,
        facts,
        preprocessing=open_clip_preprocessing(part.config),
        taken=("visual.proj",) if "proj" in tensors else (),
    )


def open_clip_preprocessing(config: Any) -> Preprocessing | None:
    """Return what an ``open_clip_config.json`` says of images; its ``longest`` mode fills with black, timm's not."""
    says = config.get("preprocess_cfg", {})
    if not says:
        return None
    return Preprocessing(
        mean=tuple(says["mean"]) if "mean" in says else None,
        std=tuple(says["std"]) if "std" in says else None,
        interpolation=says.get("interpolation"),
        crop=1.0,
        crop_mode=_CROP_MODES.get(says.get("resize_mode", "shortest")),
        origin="open_clip_config.json",
    )

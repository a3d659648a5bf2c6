"""timm's own names, and those that timm's ``checkpoint_filter_fn`` turns into them.

DeiT, DeiT-3, DINO, DINOv2 (``teacher`` files with chunked blocks too), MAE, I-JEPA, towers of open_clip that are
timm's, AIMv2, BEiT-3 and RADIO.
"""

from __future__ import annotations

import re
from typing import Any

import timm
import torch

from tocom.compression.loading.readers.part import Found, Part, named_by_size, sizes

__all__ = ["ANCHORS", "WHOLE_ANCHORS", "read", "read_whole"]

ANCHORS = ("patch_embed.proj.weight",)
# Each of these alone says that timm's filter takes the whole.
WHOLE_ANCHORS = {
    "preprocessor.patchifier.proj.weight": "AIMv2",
    "beit3.vision_embed.proj.weight": "BEiT-3",
    "radio_model.model.patch_generator.embedder.weight": "RADIO",
}
_PROJECTION_HEADS = ("head.mlp.", "head.last_layer", "dino_head.", "ibot_head.")


def read(part: Part) -> Found:
    """Return the weights, named as timm's filter takes them. See :class:`Found`."""
    # DINOv2's training keeps blocks in chunks, numbered through: blocks.1.12.… is block 12.
    state = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in part.tensors.items()}
    left_out: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    for group, starts in (("decoder", ("decoder_",)), ("projection head", _PROJECTION_HEADS)):
        gone = {key for key in state if key.startswith(starts)}
        state = {key: value for key, value in state.items() if key not in gone}
        left_out += (group,) if gone else ()
    is_dinov3 = "storage_tokens" in state
    is_dinov2 = "blocks.0.ls1.gamma" in state and "mask_token" in state and not is_dinov3
    name, options = _said(part)
    family = "timm's names"
    facts: dict[str, Any] = {}
    if is_dinov2:
        family = "DINOv2" + (", registers" if "register_tokens" in state else "")
        stem = "vit_{word}_patch{patch}_" + ("reg4_dinov2" if "register_tokens" in state else "dinov2")
        if name is None:
            like_timm = {key.replace("mlp.w12", "mlp.fc1"): value for key, value in state.items()}
            facts = sizes(like_timm, prefix=1)
            is_giant = "blocks.0.mlp.w12.weight" in state  # the one with SwiGLU
            giant = stem.format(word="giant", patch=14)
            name = giant if is_giant else named_by_size(stem, "", facts) or None
    elif is_dinov3:
        family = "DINOv3"
    elif left_out == ("decoder",):
        family = "MAE"
    elif "decoder" not in left_out and re.search(r"(^|\.)(teacher|student)\.", part.prefix):
        family = "DINO"
        if name is None and state["patch_embed.proj.weight"].shape[0] in (384, 768):
            facts = sizes(state, prefix=1)
            name = named_by_size("vit_{word}_patch{patch}_224.dino", "", facts) or None
    elif "head_dist.weight" in state:
        family = "DeiT, distilled"
    elif part.prefix.endswith("visual.trunk."):
        family = "open_clip with timm's tower"
        name = name or part.config.get("model_cfg", {}).get("vision_cfg", {}).get("timm_model_name")
        if (projection := part.sibling("head.proj.weight")) is not None:
            state["head.weight"], state["head.bias"] = projection, torch.zeros(len(projection))
            taken = ("visual.head.proj",)
    if "fc_norm.weight" in state and "norm.weight" not in state:
        options.setdefault("global_pool", "avg")
    return Found(family, state, name, facts, options, left_out=left_out, taken=taken)


def read_whole(part: Part) -> Found:
    """Return a checkpoint whose names timm's filter turns round as a whole."""
    family = next(family for anchor, family in WHOLE_ANCHORS.items() if anchor in part.tensors)
    return Found(family, dict(part.tensors))


def _said(part: Part) -> tuple[str | None, dict[str, Any]]:
    """Return the timm name and options that the checkpoint itself states."""
    arguments = part.facts.get("args") or {}
    options: dict[str, Any] = dict(arguments.get("model_kwargs") or {})
    if arguments.get("gp"):
        options["global_pool"] = arguments["gp"]
    options.update(part.config.get("model_args") or {})
    for name in (part.config.get("architecture"), part.facts.get("arch"), arguments.get("model")):
        if isinstance(name, str) and timm.is_model(name.partition(".")[0]):
            return name, options
    return None, options

"""Hugging Face's ViT, DeiT, ViT-MAE, I-JEPA and DINOv2 with and without registers.

The names are those of ``modeling_vit.py``, ``modeling_deit.py``, ``modeling_vit_mae.py``, ``modeling_ijepa.py``,
``modeling_dinov2.py`` and ``modeling_dinov2_with_registers.py`` of transformers 4 and 5, which differ.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from tocom.compression.loading.readers.part import Found, Part, named_by_size, norm_layer, sizes
from tocom.errors import ModelError

__all__ = ["ANCHORS", "canonical", "read"]

ANCHORS = ("embeddings.patch_embeddings.projection.weight",)
# Old names first, then how transformers 5 calls the same in memory.
_BLOCK = (
    (r"attention\.attention\.(query|key|value)\.", r"attn.\1."),
    (r"attention\.q_proj\.", "attn.query."),
    (r"attention\.k_proj\.", "attn.key."),
    (r"attention\.v_proj\.", "attn.value."),
    (r"attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"^output\.dense\.", "mlp.fc2."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"mlp\.weights_in\.", "mlp.fc1."),
    (r"mlp\.(?:weights_out|down_proj)\.", "mlp.fc2."),
)
_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_HEADS = ("classifier", "cls_classifier", "distillation_classifier")


def canonical(name: str) -> str:
    """Return what timm calls a tensor of a block, q, k and v still apart; other names as they are."""
    # CLIP's "encoder.layers" are not meant.
    block = re.fullmatch(r"(.*?)(?:encoder\.layer|(?<!encoder\.)(?<!decoder_)layers)\.(\d+)\.(.+)", name)
    if block is None:
        return name
    rest = block[3]
    for old, new in _BLOCK:
        rest = re.sub(old, new, rest)
    return f"{block[1]}blocks.{block[2]}.{rest}"


def read(part: Part) -> Found:
    """Return the weights by timm's names. See :class:`Found`."""
    config, model_type = part.config, str(part.config.get("model_type", ""))
    state = {_TOP.get(key, key): tensor for key, tensor in part.tensors.items()}
    left_out = tuple(key for key in state if key.startswith("pooler."))
    state = {key: tensor for key, tensor in state.items() if key not in left_out}
    if any("relative_position" in key or ".lambda_" in key for key in state):
        raise ModelError(
            "This is Hugging Face's BEiT or Data2Vec: its attention needs each token's position on the grid, which "
            "merging gives up. No engine can be made of it."
        )
    join_qkv(state)
    swiglu = _join_gate(state)
    state.pop("mask_token", None)
    heads, act = config.get("num_attention_heads"), config.get("hidden_act", "gelu")
    distilled = state.pop("embeddings.distillation_token", None)
    registers = state.pop("register_tokens", None)
    has_class_token = "cls_token" in state
    classifiers = {
        name: (part.sibling(f"{name}.weight"), part.sibling(f"{name}.bias"))
        for name in _HEADS
        if part.sibling(f"{name}.weight") is not None
    }
    facts = sizes(state, prefix=int(has_class_token) + (distilled is not None), heads=heads)
    is_dinov2 = "blocks.0.ls1.gamma" in state
    options: dict[str, Any] = {
        "norm_layer": norm_layer(float(config.get("layer_norm_eps", 1e-6 if is_dinov2 else 1e-12)))
    }
    if is_dinov2:
        family = "Hugging Face's DINOv2" + (", registers" if registers is not None else "")
        stem = "vit_{word}_patch{patch}_" + ("reg4_dinov2" if registers is not None else "dinov2")
        if registers is not None:
            # As timm keeps them: only patches have positions, the class token's is added to it.
            state["reg_token"] = registers
            state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
            state["pos_embed"] = state["pos_embed"][:, 1:]
        fallback = ("vit_giant_" if swiglu else "vit_base_") + stem.partition("}_")[2].format(patch=14)
        name = named_by_size(stem, fallback, facts)
    elif distilled is not None:
        family = "Hugging Face's DeiT"
        has_both = "distillation_classifier" in classifiers
        stem = "deit_{word}_distilled_patch{patch}_224" if has_both else "deit_{word}_patch{patch}_224"
        name = named_by_size(stem, stem.format(word="base", patch=16), facts)
        if has_both:
            state["dist_token"] = distilled
        else:  # one classifier, which reads the class token alone: the other token is a register to it
            state["reg_token"] = distilled
            options["reg_tokens"] = 1
    elif not has_class_token:
        family = "Hugging Face's I-JEPA"
        name = named_by_size("vit_{word}_patch{patch}_gap_224", "vit_base_patch16_gap_224", facts)
    else:
        family = "Hugging Face's ViT" if model_type != "vit_mae" else "Hugging Face's ViT-MAE"
        name = named_by_size("vit_{word}_patch{patch}_224", "vit_base_patch16_224", facts)
    if act != "gelu" and not swiglu:
        options["act_layer"] = act
    taken = []
    for head, (weight, bias) in classifiers.items():
        if weight.shape[1] != facts["embed_dim"]:
            left_out += (f"{head}, which reads more than timm's head does: class token and mean of the patches",)
            continue
        layer = "head_dist" if head == "distillation_classifier" else "head"
        state[f"{layer}.weight"] = weight
        state[f"{layer}.bias"] = torch.zeros(len(weight)) if bias is None else bias
        taken.append(head)
    if registers is not None:
        facts["reg_tokens"] = registers.shape[1]
    return Found(family, state, name, facts, options, left_out=left_out, taken=tuple(taken))


def join_qkv(state: dict[str, Tensor]) -> None:
    """Put ``attn.query``, ``attn.key`` and ``attn.value`` together as timm's one layer; a missing bias is zero."""
    for key in [key for key in state if key.endswith(".attn.query.weight")]:
        stem = key.removesuffix("query.weight")
        state[f"{stem}qkv.weight"] = torch.cat(
            [state.pop(f"{stem}{part}.weight") for part in ("query", "key", "value")]
        )
        if f"{stem}query.bias" in state:
            query = state.pop(f"{stem}query.bias")
            others = [state.pop(f"{stem}{part}.bias", torch.zeros_like(query)) for part in ("key", "value")]
            state[f"{stem}qkv.bias"] = torch.cat([query, *others])


def _join_gate(state: dict[str, Tensor]) -> bool:
    """Put the gate and the value of SwiGLU together, where transformers 5 has them apart; return if it is SwiGLU."""
    for key in [key for key in state if ".mlp.gate_proj." in key]:
        state[key.replace("gate_proj", "fc1")] = torch.cat([state.pop(key), state.pop(key.replace("gate_", "up_"))])
    return state["blocks.0.mlp.fc1.weight"].shape[0] != state["blocks.0.mlp.fc2.weight"].shape[1]

"""Hugging Face's CLIP and SigLIP: their vision towers, alone or within the whole.

The names are those of ``modeling_clip.py`` and ``modeling_siglip.py`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tocom.compression.loading.readers.hugging_face_vit import join_qkv
from tocom.compression.loading.readers.part import Found, Part, named_by_size, norm_layer, sizes

__all__ = ["ANCHORS", "read"]

ANCHORS = ("embeddings.patch_embedding.weight",)
_NAMES = (
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.self_attn\.q_proj\.", ".attn.query."),
    (r"\.self_attn\.k_proj\.", ".attn.key."),
    (r"\.self_attn\.v_proj\.", ".attn.value."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
)


def read(part: Part) -> Found:
    """Return the weights by timm's names. See :class:`Found`."""
    vision: Mapping[str, Any] = part.config.get("vision_config") or part.config
    state = part.renamed(_NAMES)
    state.pop("embeddings.position_ids", None)
    left_out: tuple[str, ...] = ()
    join_qkv(state)
    is_clip = "cls_token" in state
    if is_clip:
        state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    state["pos_embed"] = state["pos_embed"].unsqueeze(0)
    facts = sizes(state, prefix=int(is_clip), heads=vision.get("num_attention_heads"))
    act = str(vision.get("hidden_act", "quick_gelu" if is_clip else "gelu_pytorch_tanh"))
    act = {"gelu_pytorch_tanh": "gelu_tanh"}.get(act, act)
    options: dict[str, Any] = {
        "act_layer": act,
        "norm_layer": norm_layer(float(vision.get("layer_norm_eps", 1e-5 if is_clip else 1e-6))),
    }
    if is_clip:
        stem = "vit_{word}_patch{patch}_clip_" + ("quickgelu_224" if act == "quick_gelu" else "224")
        name = named_by_size(stem, stem.format(word="base", patch=32), facts)
    else:
        name = named_by_size("vit_{word}_patch{patch}_siglip_224", "vit_base_patch16_siglip_224", facts)
    if "attn_pool.latent" in state:
        _pool(state)
    weight, taken = part.sibling("classifier.weight"), ()
    if weight is not None:
        # Hugging Face's classifiers of both read the mean of the patches, CLIP's before the last norm.
        taken = ("classifier",)
        bias = part.sibling("classifier.bias")
        state["head.weight"], state["head.bias"] = weight, torch.zeros(len(weight)) if bias is None else bias
        left_out += tuple(sorted({key.partition(".")[0] for key in state if key.startswith("attn_pool.")}))
        state = {key: tensor for key, tensor in state.items() if not key.startswith("attn_pool.")}
        options.update(global_pool="avg", fc_norm=False)
        if is_clip:
            options["final_norm"] = False
            left_out += ("post_layernorm",)
            state = {key: tensor for key, tensor in state.items() if not key.startswith("norm.")}
    elif (projection := part.sibling("visual_projection.weight")) is not None:
        taken = ("visual_projection",)
        state["head.weight"], state["head.bias"] = projection, torch.zeros(len(projection))
    if weight is None and not is_clip and "attn_pool.latent" not in state:
        options.update(global_pool="avg", fc_norm=False)  # vision_use_head: false; what is read is up to its user
    return Found(
        f"Hugging Face's {'CLIP' if is_clip else 'SigLIP'}, vision tower",
        state,
        name,
        facts,
        options,
        left_out=left_out,
        taken=taken,
    )


def _pool(state: dict[str, Tensor]) -> None:
    """Take torch's multi-head attention apart: timm's pooling has q on its own, k and v in one."""
    for kind in ("weight", "bias"):
        q, k, v = state.pop(f"head.attention.in_proj_{kind}").chunk(3)
        state[f"attn_pool.q.{kind}"], state[f"attn_pool.kv.{kind}"] = q, torch.cat([k, v])

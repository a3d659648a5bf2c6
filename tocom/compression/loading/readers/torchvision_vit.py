"""torchvision's ``vit_b_16`` and its kin, by the names of ``torchvision/models/vision_transformer.py``."""

from __future__ import annotations

from tocom.compression.loading.preprocessing import Preprocessing
from tocom.compression.loading.readers.part import Found, Part, named_by_size, norm_layer, sizes

__all__ = ["ANCHORS", "read"]

ANCHORS = ("conv_proj.weight", "encoder.pos_embedding")
_NAMES = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:linear_1|0)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:linear_2|3)\.", ".mlp.fc2."),
    (r"^heads\.(?:head\.|0\.)?", "head."),
)


def read(part: Part) -> Found:
    """Return the weights by timm's names. See :class:`Found`."""
    state = part.renamed(_NAMES)
    facts = sizes(state, prefix=1, heads=part.config.get("num_attention_heads"))
    # transforms/_presets.py, ImageClassification: resized to 256, then 224 of the middle.
    preprocessing = Preprocessing(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bilinear",
        crop=0.875,
        crop_mode="center",
        origin="torchvision's usual",
    )
    return Found(
        "torchvision's ViT",
        state,
        named_by_size("vit_{word}_patch{patch}_224", "vit_base_patch16_224", facts),
        facts,
        {"norm_layer": norm_layer(1e-6)},
        preprocessing,
    )

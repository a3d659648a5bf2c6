"""mmpretrain's (and mmcls's) ViT, by the names of ``mmpretrain/models/backbones/vision_transformer.py``."""

from __future__ import annotations

from tocom.compression.loading.readers.part import Found, Part, named_by_size, norm_layer, sizes

__all__ = ["ANCHORS", "read"]

ANCHORS = ("patch_embed.projection.weight",)
_NAMES = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.", r"blocks.\1."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^(?:ln|norm)1\.", "norm."),
    (r"^ln2\.", "fc_norm."),
    (r"^pre_norm\.", "norm_pre."),
)
# heads/vision_transformer_head.py and heads/linear_head.py
_HEADS = ("head.layers.head", "head.fc")


def read(part: Part) -> Found:
    """Return the weights by timm's names. See :class:`Found`."""
    state = part.renamed(_NAMES)
    facts = sizes(state, prefix=int("cls_token" in state))
    taken = []
    for head in _HEADS:
        for kind in ("weight", "bias"):
            if (tensor := part.sibling(f"{head}.{kind}")) is not None:
                state[f"head.{kind}"] = tensor
                taken.append(f"{head}.{kind}")
    return Found(
        "mmpretrain's ViT",
        state,
        named_by_size("vit_{word}_patch{patch}_224", "vit_base_patch16_224", facts),
        facts,
        {"norm_layer": norm_layer(1e-6)},
        taken=tuple(taken),
    )

"""What is supported and what is not: one table, which the tests go through (and from which a page can be made)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import timm
from small_vits import small_vit
from timm.models.vision_transformer import VisionTransformer

GRID = 5  # patches on a side: 25 of them, an odd count


@dataclass(frozen=True)
class Family:
    """A timm model of one family, made small.

    Attributes:
        group: The family, in words.
        name: timm name.
        prefix: Leading tokens that the model must have.
        pooling: timm's name of how tokens become one feature.
        options: For ``create_model``, beside the small sizes.
    """

    group: str
    name: str
    prefix: int
    pooling: str = "token"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether the installed timm has this model."""
        return timm.is_model(self.name.partition(".")[0])

    def build(self, **options: Any) -> VisionTransformer:
        """Return the small model with spread weights."""
        patch = next((size for size in (8, 14, 32) if f"patch{size}" in self.name), 16)
        return small_vit(self.name, side=GRID * patch, **{**self.options, **options})


_FEATURES = {"num_classes": 0}
_STATIC = {"dynamic_img_size": False}  # timm makes these for any size unless told
ROTARY = (
    Family("DINOv3", "vit_small_patch16_dinov3", 5, "avg", _STATIC),
    Family("DINOv3", "vit_base_patch16_dinov3_qkvb", 5, "avg", {**_STATIC, **_FEATURES}),
    Family("DINOv3, gated MLP", "vit_small_plus_patch16_dinov3", 5, "avg", _STATIC),
    Family("DINOv3, gated MLP", "vit_7b_patch16_dinov3", 5, "avg", {**_STATIC, **_FEATURES}),
    Family("LingBot", "vit_small_patch16_lingbot", 5, options={**_STATIC, **_FEATURES}),
    Family("EVA-02", "eva02_tiny_patch14_224", 1, "avg"),
    Family("EVA-02, inner norms", "eva02_base_patch14_448", 1, "avg"),
    Family("EVA-02, CLIP", "eva02_base_patch16_clip_224", 1),
    Family("EVA-02, post-norm blocks", "eva02_enormous_patch14_clip_224", 1),
    Family("EVA, no rotary positions", "eva_giant_patch14_224", 1, "avg"),
    Family("rotary", "vit_small_patch16_rope_224", 1),
    Family("rotary and absolute", "vit_small_patch16_rope_ape_224", 1),
    Family("rotary, mixed", "vit_small_patch16_rope_mixed_224", 1),
    Family("rotary, mixed and absolute", "vit_base_patch16_rope_mixed_ape_224", 1),
    Family("rotary, registers", "vit_betwixt_patch16_rope_reg4_gap_256", 4, "avg"),
    Family("Perception Encoder", "vit_pe_core_tiny_patch16_384", 1, "map"),
    Family("Perception Encoder, no class token", "vit_pe_core_gigantic_patch14_448", 0, "map"),
    Family("Perception Encoder, spatial", "vit_pe_spatial_small_patch16_512", 1, "avg"),
)
FAMILIES = (
    Family("DeiT", "deit_tiny_patch16_224", 1),
    Family("DeiT", "deit_base_patch16_384", 1),
    Family("DeiT, distilled", "deit_tiny_distilled_patch16_224", 2),
    Family("DeiT, distilled", "deit_base_distilled_patch16_224", 2),
    Family("DeiT-3", "deit3_small_patch16_224", 1),
    Family("DeiT-3", "deit3_medium_patch16_224", 1),
    Family("AugReg", "vit_tiny_patch16_224", 1),
    Family("AugReg", "vit_small_patch32_224", 1),
    Family("AugReg", "vit_base_patch8_224", 1),
    Family("ImageNet-21k (MIIL)", "vit_base_patch16_224_miil", 1),
    Family("FlexiViT", "flexivit_small", 1),
    Family("MAE", "vit_base_patch16_224", 1, options=_FEATURES),
    Family("MAE", "vit_large_patch16_224", 1, "avg", {"global_pool": "avg"}),
    Family("DINOv2", "vit_small_patch14_dinov2", 1, options=_FEATURES),
    Family("DINOv2", "vit_giant_patch14_dinov2", 1, options={"embed_dim": 96, **_FEATURES}),
    Family("DINOv2, registers", "vit_small_patch14_reg4_dinov2", 5, options=_FEATURES),
    Family("DINOv2, registers", "vit_base_patch14_reg4_dinov2", 5),
    Family("TIPSv2", "vit_base_patch14_reg1_tipsv2", 2, options=_FEATURES),
    Family("CLIP", "vit_xsmall_patch16_clip_224", 1),
    Family("CLIP", "vit_base_patch16_clip_quickgelu_224", 1),
    Family("CLIP", "vit_base_patch32_clip_256", 1),
    Family("SigLIP", "vit_base_patch16_siglip_224", 0, "map", _FEATURES),
    Family("SigLIP", "vit_so400m_patch14_siglip_224", 0, "map", _FEATURES),
    Family("SigLIP, average", "vit_base_patch16_siglip_gap_224", 0, "avg", _FEATURES),
    Family("average pooling", "vit_base_patch16_gap_224", 0, "avg"),
    Family("average pooling", "vit_medium_patch16_gap_240", 0, "avg"),
    Family("registers", "vit_wee_patch16_reg1_gap_256", 1, "avg"),
    Family("registers", "vit_little_patch16_reg4_gap_256", 4, "avg"),
    Family("registers, attention pooling", "vit_so150m_patch16_reg4_map_256", 4, "map"),
    Family("query and key norm", "vit_tiny_patch16_224", 1, options={"qk_norm": True}),
    Family("post-norm blocks", "vit_base_patch16_rpn_224", 0, "avg"),
    Family("AIMv2", "aimv2_large_patch14_224", 0, "avg", _FEATURES),
    Family("BEiT-3", "beit3_base_patch16_224", 1, "avg"),
    Family("EVA", "eva_large_patch14_196", 1, "avg"),
    Family("RADIO", "vit_base_patch16_radio_v3", 8, options=_FEATURES),
    *ROTARY,
)


@dataclass(frozen=True)
class Refused:
    """A timm model that cannot be compressed.

    Attributes:
        name: timm name.
        reason: Regular expression that the error must match.
        options: For ``create_model``: small sizes.
    """

    name: str
    reason: str
    options: dict[str, Any] = field(default_factory=dict)


_TINY = {"depth": 1, "embed_dim": 64, "num_heads": 4}
_UNPLACED = "is not supported: tocom compresses plain and rotary ViTs"
REFUSED = (
    Refused("test_resnet", f"ResNet {_UNPLACED}"),
    Refused("test_convnext", f"ConvNeXt {_UNPLACED}"),
    Refused("swin_tiny_patch4_window7_224", f"SwinTransformer {_UNPLACED}", {"depths": (1, 1, 1, 1), "embed_dim": 24}),
    Refused("vit_relpos_small_patch16_224", f"VisionTransformerRelPos {_UNPLACED}", _TINY),
    Refused("beit_base_patch16_224", f"Beit {_UNPLACED}", _TINY),
    Refused("naflexvit_base_patch16_gap", f"NaFlexVit {_UNPLACED}.*no static token counts", _TINY),
    Refused("vit_small_patch16_dinov3", "Eva with dynamic_img_size has no static token counts", _TINY),
    Refused("vit_small_patch16_rope_224", "patch dropout has no static", {**_TINY, "patch_drop_rate": 0.2}),
    Refused(
        "vit_base_patch16_sapiens2",
        "heads of block 0 share keys and values in groups of 2",
        {**_TINY, "num_kv_heads": 2, "dynamic_img_size": False},
    ),
    Refused(
        "vit_pwee_patch16_reg1_gap_256", "block 0 is a ParallelScalingBlock.*one attention followed by one MLP", _TINY
    ),
    Refused("vit_small_patch16_18x2_224", "block 0 is a ParallelThingsBlock.*one attention followed by one MLP", _TINY),
    Refused("vit_dwee_patch16_reg1_gap_256", "attention of block 0 is a DiffAttention", _TINY),
    Refused("vit_tiny_r_s16_p8_224", "HybridEmbed", _TINY),
    Refused("vit_tiny_patch16_224", "dynamic_img_size has no static token counts", {**_TINY, "dynamic_img_size": True}),
    Refused("vit_tiny_patch16_224", "patch dropout has no static token counts", {**_TINY, "patch_drop_rate": 0.2}),
)

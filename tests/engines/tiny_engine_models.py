from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer

DEPTH = 3


def tiny_vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=DEPTH, num_heads=2, num_classes=10, mlp_ratio=2.0
    ).eval()

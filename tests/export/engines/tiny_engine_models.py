from __future__ import annotations

import hashlib

import onnx
import torch
from timm.models.vision_transformer import VisionTransformer

from tocom.formats.bundle import MANIFEST_NAME, Bundle
from tocom.formats.sealed_json import write_sealed_json

DEPTH = 2


def tiny_vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=DEPTH, num_heads=2, num_classes=10, mlp_ratio=2.0
    ).eval()


def with_onnx(bundle: Bundle, degree: int, model: onnx.ModelProto) -> Bundle:
    """Put another ONNX file in a bundle, as whoever made the bundle could: size, hash and seal are right."""
    path, data = bundle.onnx_path(degree), model.SerializeToString()
    path.write_bytes(data)
    bundle.manifest["files"][path.name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_sealed_json(bundle.path / MANIFEST_NAME, bundle.manifest)
    return Bundle(bundle.path)

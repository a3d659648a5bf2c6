"""A small real bundle for INT8: a ViT of three blocks, exported at three degrees, and images for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from small_vits import busy_compensator, small_vit
from timm.models.vision_transformer import VisionTransformer

from tocom.export import export
from tocom.formats.bundle import Bundle
from tocom.runtime import Runtime

DEGREES = (0, 2, 4)


def smooth_images(count: int, side: int = 80, seed: int = 0) -> np.ndarray:
    """Return images [count, 3, side, side] that differ in their large shapes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, side, side)
    for size in (2, 5, 20):
        noise = torch.randn(count, 3, size, size, generator=generator)
        images += torch.nn.functional.interpolate(noise, size=(side, side), mode="bilinear", align_corners=False)
    return images.numpy()


def with_outlier(model: VisionTransformer, block: int = 1, factor: float = 300.0) -> VisionTransformer:
    """Give one channel entering q, k and v of a block huge values that their weights undo: eight bits cannot."""
    with torch.no_grad():
        norm, qkv = model.blocks[block].norm1, model.blocks[block].attn.qkv
        norm.weight[0] *= factor
        norm.bias[0] *= factor
        qkv.weight[:, 0] /= factor
    return model


def write_bundle(path: Path, model: VisionTransformer, degrees: tuple[int, ...] = DEGREES) -> Bundle:
    """Export a model, with a compensator that changes it at every degree."""
    return export(model, path, degrees=degrees, compensator=busy_compensator(model), check=False)


def labelled(bundle: Bundle, images: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Return the images with the dense float32 engine's answers as their labels."""
    with Runtime.open(bundle.path, "onnxruntime", degrees=[0]) as runtime:
        answers = [int(runtime.infer(image[None], degree=0).outputs["logits"].argmax()) for image in images]
    return list(zip(images, answers, strict=True))


def small_bundle(path: Path) -> Bundle:
    """Write the bundle that most tests share."""
    return write_bundle(path, small_vit(seed=3))

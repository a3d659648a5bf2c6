"""Small Vision Transformers of timm with weights at which every part matters."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tocom import Compensator

SMALL = {"depth": 3, "embed_dim": 64, "num_heads": 4}


def small_vit(
    name: str = "vit_tiny_patch16_224", *, side: int = 80, seed: int = 0, **options: Any
) -> VisionTransformer:
    """Return a timm model in evaluation mode: three blocks of 64 channels, unless ``options`` say otherwise.

    Args:
        name: timm name.
        side: Of the image, in pixels.
        seed: Of the weights.
        options: For timm's ``create_model``.
    """
    torch.manual_seed(seed)
    model = timm.create_model(name, pretrained=False, img_size=side, **{**SMALL, "num_classes": 10, **options})
    spread_weights(model, seed)
    return model.eval()


def spread_weights(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter a size at which it matters; timm starts layer scales, biases and tokens near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and "token" not in name and "embed" not in name.split(".")[0]:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif name.endswith("gamma"):
                parameter.copy_(0.5 + 0.1 * noise)
            elif "patch_embed" in name and parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * noise)


def small_images(model: VisionTransformer, count: int = 2, seed: int = 0) -> Tensor:
    """Return random images [count, channels, height, width] for a model."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, model.patch_embed.proj.in_channels, *model.patch_embed.img_size, generator=generator)


def busy_compensator(
    model: VisionTransformer,
    *,
    groups: int = 6,
    rank: int = 2,
    method: str = "merge",
    family: str = "every",
    seed: int = 0,
) -> Compensator:
    """Return a compensator that fits the model and changes its output at every step of the degree."""
    compensator = Compensator.for_model(model, groups=groups, rank=rank, method=method, family=family)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in compensator.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * (0.3 if name.endswith("up") else parameter.shape[1] ** -0.5))
    return compensator.eval()

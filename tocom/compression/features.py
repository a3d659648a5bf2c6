"""The pooled features that a model's head reads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

__all__ = ["pooled", "pooled_features"]


def pooled(model: VisionTransformer, images: Tensor) -> Tensor:
    """Return the pooled features [batch, channels] of images [batch, channels, height, width]."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def pooled_features(
    model: VisionTransformer,
    images: Dataset[Tensor],
    progress: Callable[[int, int], None] | None = None,
    *,
    batch_size: int = 8,
) -> Tensor:
    """Return the pooled features of all images, [count, channels], float32, on the CPU.

    Args:
        model: Dense or compressed.
        images: Of [channels, height, width] each.
        progress: Called with the batches done, and all of them.
        batch_size: Images per forward pass.
    """
    device = next(model.parameters()).device
    parts = []
    loader = DataLoader(images, batch_size=batch_size)
    with torch.no_grad():
        for index, batch in enumerate(loader):
            parts.append(pooled(model, batch.to(device)).float().cpu())
            if progress is not None:
                progress(index + 1, len(loader))
    return torch.cat(parts)

"""The pooled features that a model's head reads, and the features of every patch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tocom.compression import merging, ops
from tocom.compression.blocks import CompressedBlocks, embed
from tocom.errors import DegreeError, ModelError

__all__ = ["check_patches", "patch_features", "pooled", "pooled_features", "tokens_and_patches"]


def pooled(model: VisionTransformer, images: Tensor) -> Tensor:
    """Return the pooled features [batch, channels] of images [batch, channels, height, width]."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def patch_features(model: VisionTransformer, images: Tensor) -> Tensor:
    """Return a feature for every patch behind the last norm, [batch, patches, channels], in the grid's order.

    A patch that merged has the features of the token that it became part of; one that was pruned, of the fused token.
    Of a dense model they are timm's: what ``forward_intermediates(…, indices=1, norm=True)`` gives, as [batch, patches,
    channels].

    Args:
        model: Dense or compressed.
        images: [batch, channels, height, width].

    Raises:
        DegreeError: The model prunes without ``fuse``: nothing stands for the patches that are gone.
        ModelError: The model's head pools before the last norm: no patch has normed features.
    """
    return tokens_and_patches(model, images)[1]


def tokens_and_patches(model: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens behind the last norm, [batch, tokens, channels], and what :func:`patch_features` returns."""
    blocks, prefix = model.blocks, model.num_prefix_tokens
    method, fuse = (blocks.method, blocks.fuse) if isinstance(blocks, CompressedBlocks) else ("merge", False)
    check_patches(model, method, fuse=fuse)
    if not isinstance(blocks, CompressedBlocks):
        x: Tensor = model.forward_features(images)
        return x, x[:, prefix:]
    x, home = blocks.run(*embed(model, images))
    x = model.norm(x)
    if home is None:
        return x, x[:, prefix:]
    return x, (ops if torch.compiler.is_exporting() else merging).gather_tokens(x, home)


def check_patches(model: VisionTransformer, method: str, *, fuse: bool) -> None:
    """Raise DegreeError unless every patch has a token at the end, ModelError unless the last norm is of tokens."""
    if isinstance(model.norm, nn.Identity) and not isinstance(model.fc_norm, nn.Identity):
        raise ModelError(
            "Patch features are taken behind the model's last norm, and this one's head pools before it (timm's "
            "fc_norm): no patch has normed features. Use a model whose norm comes first, or pooled features alone."
        )
    if method == "prune" and not fuse:
        raise DegreeError(
            "Patch features need a token for every patch, and pruning removes tokens with nothing in their place. Fuse "
            "the removed ones (fuse=True, --fuse), or merge."
        )


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
        images: [channels, height, width] each.
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

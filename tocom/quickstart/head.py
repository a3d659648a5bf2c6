"""A linear head on frozen features: what a team's fine-tuning stands for in the quickstart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

__all__ = ["fit_head", "pooled", "pooled_features"]

_BATCH = 8


def pooled(model: VisionTransformer, images: Tensor) -> Tensor:
    """Return the pooled features [batch, channels] of images [batch, channels, height, width]."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def pooled_features(
    model: VisionTransformer, images: Dataset[Tensor], progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """Return the pooled features of all images, [count, channels]."""
    parts = []
    loader = DataLoader(images, batch_size=_BATCH)
    with torch.no_grad():
        for index, batch in enumerate(loader):
            parts.append(pooled(model, batch))
            if progress is not None:
                progress(index + 1, len(loader))
    return torch.cat(parts)


def fit_head(inputs: Tensor, labels: Sequence[int], *, weight_decay: float = 1e-2, steps: int = 100) -> nn.Linear:
    """Fit multinomial logistic regression by L-BFGS, from zero: no randomness.

    Args:
        inputs: Features [count, channels].
        labels: Class of each.
        weight_decay: Of the weights on standardised features.
        steps: Iterations at most.

    Returns:
        A layer on the features as they are: the standardisation stands in its weights.
    """
    mean, std = inputs.mean(0), inputs.std(0).clamp_min(1e-6)
    standard, target = (inputs - mean) / std, torch.tensor(labels)
    head = nn.Linear(inputs.shape[1], int(target.max()) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(standard), target) + weight_decay * head.weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        head.weight.div_(std)
        head.bias.sub_(head.weight @ mean)
    return head.requires_grad_(False)

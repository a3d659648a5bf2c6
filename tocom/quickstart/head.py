"""A linear head on frozen features: what a team's fine-tuning stands for in the quickstart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["fit_head"]


_WEIGHT_DECAY, _MOST_STEPS = 1e-2, 100


def fit_head(inputs: Tensor, labels: Sequence[int]) -> nn.Linear:
    """Fit multinomial logistic regression by L-BFGS, from zero: no randomness.

    Args:
        inputs: Features [count, channels].
        labels: Class of each.

    Returns:
        A layer on the features as they are: the standardisation stands in its weights.
    """
    mean, std = inputs.mean(0), inputs.std(0).clamp_min(1e-6)
    standard, target = (inputs - mean) / std, torch.tensor(labels)
    head = nn.Linear(inputs.shape[1], int(target.max()) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=_MOST_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(standard), target) + _WEIGHT_DECAY * head.weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        head.weight.div_(std)
        head.bias.sub_(head.weight @ mean)
    return head.requires_grad_(False)

"""The low-rank groups of one projection."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["LowRank", "attention_channels"]

DROPOUT = 0.1


def attention_channels(attention: nn.Module) -> int:
    """Return the width of an attention layer's queries, and of keys and values."""
    return int(attention.num_heads * attention.head_dim)


class LowRank(nn.Module):
    """The groups of one projection: ``down`` [groups · rank, dim] and ``up`` [attention channels, groups · rank].

    Group ``g``, the step from degree ``g`` to ``g + 1``, is rank rows ``g · rank … (g + 1) · rank``.
    """

    def __init__(self, channels: int, out_channels: int, groups: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.down = nn.Parameter(torch.empty(groups * rank, channels))
        self.up = nn.Parameter(torch.zeros(out_channels, groups * rank))
        self.share: tuple[int, int] | None = None
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor, low: int, high: int, scale: float) -> Tensor:
        """Return ``scale · x · (C_high − C_low)ᵀ`` for x [batch, tokens, dim]; only those rank rows are computed."""
        rows = slice(low * self.rank, high * self.rank)
        hidden = nn.functional.linear(x, self.down[rows])
        if self.training:
            hidden = self._drop(hidden)
        return nn.functional.linear(hidden, self.up[:, rows]) * scale

    def _drop(self, hidden: Tensor) -> Tensor:
        if self.share is None:
            return nn.functional.dropout(hidden, DROPOUT)
        start, whole = self.share
        mask = nn.functional.dropout(hidden.new_ones(whole, *hidden.shape[1:]), DROPOUT)
        return hidden * mask[start : start + len(hidden)]

    def delta(self, low: int, high: int) -> Tensor:
        """Return ``C_high − C_low``, [attention channels, dim], float32."""
        rows = slice(low * self.rank, high * self.rank)
        return self.up[:, rows].float() @ self.down[rows].float()

"""Rotary positions of tokens that merge: each token carries its position, which merges as it does.

A position is what follows the tokens through merging and pruning: in most models the sines and cosines that timm turns
a head's channels by, where one token stands for several their mean; with mixed frequencies, which are different in
every head of every block, the row and column. Protected tokens have no position: they are not turned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.models.eva import Eva
from torch import Tensor, nn

__all__ = ["Rotation", "turn"]


@dataclass(frozen=True)
class Rotation:
    """How the blocks of a model turn queries and keys.

    Attributes:
        rope: What timm gives its blocks: [patches, 2 · head_channels], or with mixed frequencies
            [blocks, heads, patches, 2 · head_channels].
        positions: Positions of the tokens that enter the first block, [1, tokens, position channels].
        half: Whether channel ``i`` forms a pair with that half of the head's channels later, not with its neighbour.
        frequencies: Of mixed ones, [2, blocks, heads, head_channels / 2]; None for those that all blocks share.
    """

    rope: Tensor
    positions: Tensor
    half: bool
    frequencies: Tensor | None = None

    @classmethod
    def of(cls, model: Eva, rope: Tensor) -> Rotation:
        """Return the rotation of a model that gives its blocks ``rope``."""
        half = bool(getattr(model.blocks[0].attn, "rotate_half", False))
        if model.rope_mixed:
            grid = torch.stack([model.rope.t_x, model.rope.t_y], dim=-1)
            # The frequencies go by the order of timm's two coordinates; a position of zero turns by nothing.
            positions = nn.functional.pad(grid, (0, 0, model.num_prefix_tokens, 0))
            return cls(rope, positions.to(rope.dtype).unsqueeze(0), half, model.rope.freqs)
        sine, cosine = rope.chunk(2, dim=-1)
        # timm repeats each value for both channels of a pair.
        pairs = sine.shape[-1] // 2
        sine, cosine = (part[:, :pairs] if half else part[:, ::2] for part in (sine, cosine))
        prefix = sine.new_zeros(model.num_prefix_tokens, pairs)
        positions = torch.cat([torch.cat([prefix, sine]), torch.cat([prefix + 1, cosine])], dim=-1)
        return cls(rope, positions.unsqueeze(0), half)

    def dense(self, block: int) -> Tensor:
        """Return what timm gives a block: [patches, 2 · head_channels], with mixed frequencies for every head."""
        return self.rope if self.frequencies is None else self.rope[block]

    def at(self, block: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return sine and cosine of a block's tokens, each [batch or 1, heads or 1, tokens, head_channels / 2].

        Args:
            block: Its index.
            positions: Positions of the tokens, [batch or 1, tokens, position channels].
        """
        positions = positions.unsqueeze(1)
        if self.frequencies is None:
            sine, cosine = positions.chunk(2, dim=-1)
            return sine, cosine
        positions = positions.to(torch.promote_types(positions.dtype, torch.float32))
        angle = sum(
            positions[..., axis, None] * self.frequencies[axis, block, :, None].to(positions.dtype) for axis in (0, 1)
        )
        assert isinstance(angle, Tensor)
        return angle.sin(), angle.cos()


def turn(x: Tensor, sine: Tensor, cosine: Tensor, *, half: bool) -> Tensor:
    """Turn pairs of channels by an angle each.

    Args:
        x: Queries or keys [batch, heads, tokens, head_channels].
        sine: [batch or 1, heads or 1, tokens, head_channels / 2].
        cosine: Their cosines, of the same shape.
        half: As in :class:`Rotation`.

    Returns:
        The shape and type of ``x``.
    """
    first, second = x.chunk(2, dim=-1) if half else x.unflatten(-1, (-1, 2)).unbind(-1)
    pair = (first * cosine - second * sine, second * cosine + first * sine)
    turned = torch.cat(pair, dim=-1) if half else torch.stack(pair, dim=-1).flatten(-2)
    return turned.to(x.dtype)

"""Multi-head self-attention with what compression needs from the inside: keys, sizes, low-rank deltas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

if TYPE_CHECKING:
    from tocom.compensator import LowRank

__all__ = ["SplitProjection", "attend", "project"]


class SplitProjection(nn.Module):
    """q, k and v as three layers, in the place of timm's one. For export, where only q and v differ by degree.

    Args:
        qkv: The fused layer, [3 · attention channels, channels].
    """

    def __init__(self, qkv: nn.Linear) -> None:
        super().__init__()
        for index, name in enumerate(("q", "k", "v")):
            part = nn.Linear(qkv.in_features, qkv.out_features // 3, bias=qkv.bias is not None, device="meta")
            part.weight = nn.Parameter(qkv.weight.detach().chunk(3)[index].clone(), requires_grad=False)
            if qkv.bias is not None:
                part.bias = nn.Parameter(qkv.bias.detach().chunk(3)[index].clone(), requires_grad=False)
            self.add_module(name, part)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v, each [batch, tokens, attention channels]."""
        return self.q(x), self.k(x), self.v(x)


def project(
    attention: Attention,
    x: Tensor,
    adapters: dict[str, LowRank] | None = None,
    window: tuple[int, int, float] = (0, 0, 0.0),
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute queries, keys and values.

    Args:
        attention: timm's attention layer.
        x: [batch, tokens, channels].
        adapters: Low-rank layers to add to ``q`` and ``v``.
        window: First group, group after the last, and signed scale of the adapters.

    Returns:
        q, k and v, each [batch, heads, tokens, head_channels], normalised where the layer normalises them.
    """
    batch, tokens, _ = x.shape
    if isinstance(attention.qkv, SplitProjection):
        q, k, v = attention.qkv(x)
    else:
        q, k, v = attention.qkv(x).chunk(3, dim=-1)
    if adapters is not None:
        q = q + adapters["q"](x, *window)
        v = v + adapters["v"](x, *window)
    shape = (batch, tokens, attention.num_heads, attention.head_dim)
    q, k, v = (part.reshape(shape).transpose(1, 2) for part in (q, k, v))
    return attention.q_norm(q), attention.k_norm(k), v


def attend(attention: Attention, x: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the layer's output from its queries, keys and values.

    Args:
        attention: timm's attention layer.
        x: The layer's input [batch, tokens, channels]; gated layers need it.
        q: Queries [batch, heads, tokens, head_channels].
        k: Keys, of the same shape.
        v: Values, of the same shape.
        bias: Added to the logits before softmax, [batch, 1, 1, tokens]: ``log(size)`` is proportional attention
            (ToMe, equation 1). None for none.

    Returns:
        [batch, tokens, channels].
    """
    dropout = attention.attn_drop.p if attention.training else 0.0
    if torch.compiler.is_exporting():
        # Spelled out, the exported graph is four nodes; the fused call decomposes into twice that.
        logits = (q * attention.scale) @ k.transpose(-1, -2)
        out = (logits if bias is None else logits + bias).softmax(dim=-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    out = out.transpose(1, 2).flatten(2)
    out = attention.norm(out)
    if attention.gate is not None:
        out = out * attention.gate(x).sigmoid()
    return attention.proj_drop(attention.proj(out))

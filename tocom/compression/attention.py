"""Multi-head self-attention with what compression needs from the inside: keys, sizes, low-rank deltas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

if TYPE_CHECKING:
    from tocom.compensator.low_rank import LowRank

__all__ = ["SplitProjection", "attend", "project"]


class SplitProjection(nn.Module):
    """q, k and v apart, in the place of timm's one layer. For export, where only q and v differ by degree.

    Weights are stored [channels, attention channels], as ONNX's MatMul takes them.

    Args:
        qkv: The fused layer, [3 · attention channels, channels].
    """

    def __init__(self, qkv: nn.Linear) -> None:
        super().__init__()
        for index, name in enumerate("qkv"):
            weight = qkv.weight.detach().chunk(3)[index].t().contiguous()
            self.register_parameter(f"{name}_weight", nn.Parameter(weight, requires_grad=False))
            bias = None if qkv.bias is None else nn.Parameter(qkv.bias.detach().chunk(3)[index].clone(), False)
            self.register_parameter(f"{name}_bias", bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return q, k and v, each [batch, tokens, attention channels]."""
        products = [(x @ getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")) for name in "qkv"]
        return tuple(product if bias is None else product + bias for product, bias in products)


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
        logits = (q if attention.scale == 1 else q * attention.scale) @ k.transpose(-1, -2)
        out = (logits if bias is None else logits + bias).softmax(dim=-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    out = out.transpose(1, 2).flatten(2)
    out = attention.norm(out)
    if attention.gate is not None:
        out = out * attention.gate(x).sigmoid()
    return attention.proj_drop(attention.proj(out))

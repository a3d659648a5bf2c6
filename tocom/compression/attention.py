"""Multi-head self-attention with what compression needs from the inside: keys, sizes, low-rank deltas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from tocom.compensator.low_rank import LowRank

__all__ = ["SplitProjection", "attend", "layers", "parts", "project"]


def layers(attention: nn.Module) -> dict[str, nn.Module]:
    """Return timm's layers that make q, k and v, by their names: one, ``qkv``, or three."""
    if attention.qkv is not None:
        return {"qkv": attention.qkv}
    return {name: getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")}


def parts(attention: nn.Module) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return the weight [attention channels, channels] and the bias, or None, of ``q``, ``k`` and ``v``.

    They are one layer, one layer with biases beside it (EVA), or three layers.
    """
    if attention.qkv is None:
        return {name[0]: (layer.weight, layer.bias) for name, layer in layers(attention).items()}
    fused = attention.qkv.bias
    beside = tuple(getattr(attention, f"{name}_bias", None) for name in "qkv")
    biases = beside if fused is None else fused.chunk(3)
    return dict(zip("qkv", zip(attention.qkv.weight.chunk(3), biases, strict=True), strict=True))


class SplitProjection(nn.Module):
    """q, k and v apart, in the place of timm's own layers. For export, where only q and v differ by degree.

    Weights are stored [channels, attention channels], as ONNX's MatMul takes them.

    Args:
        attention: timm's attention layer.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        for name, (weight, bias) in parts(attention).items():
            transposed = nn.Parameter(weight.detach().t().contiguous(), requires_grad=False)
            self.register_parameter(f"{name}_weight", transposed)
            own = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
            self.register_parameter(f"{name}_bias", own)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return q, k and v, each [batch, tokens, attention channels]."""
        products = [(x @ getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")) for name in "qkv"]
        return tuple(product if bias is None else product + bias for product, bias in products)


def project(
    attention: nn.Module,
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
    elif attention.qkv is None:
        q, k, v = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
    elif getattr(attention, "q_bias", None) is not None:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        q, k, v = (attention.qkv(x) + bias).chunk(3, dim=-1)
    else:
        q, k, v = attention.qkv(x).chunk(3, dim=-1)
    if adapters is not None:
        q = q + adapters["q"](x, *window)
        v = v + adapters["v"](x, *window)
    shape = (batch, tokens, attention.num_heads, attention.head_dim)
    q, k, v = (part.reshape(shape).transpose(1, 2) for part in (q, k, v))
    return attention.q_norm(q), attention.k_norm(k), v


def attend(attention: nn.Module, x: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
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

"""The weights that differ by degree: q and v with the compensator merged in."""

from __future__ import annotations

from collections.abc import Collection

import onnx
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tocom.compression.attention import parts
from tocom.export.graph.trace import DTYPES, projection_name

__all__ = ["projection_weights", "to_onnx"]


def projection_weights(
    model: VisionTransformer, *, precision: str, wide: Collection[int] = ()
) -> dict[str, onnx.TensorProto]:
    """Return the initializers of q and v of a model at a degree, its compensator merged in float32, then cast.

    Those of the blocks in ``wide`` stay in float32.

    The attention's scale stands in q's weights, as :func:`tocom.export.graph.trace.trace` folds it into q's bias.
    """
    tensors: dict[str, onnx.TensorProto] = {}
    for index in range(len(model.blocks)):
        block = model.blocks[index]
        found = parts(block.attn)
        for name in ("q", "v"):
            weight = found[name][0].detach().float()
            if name == "q" and isinstance(block.attn.q_norm, nn.Identity):
                weight = weight * block.attn.scale
            key = projection_name(index, name, "weight")
            tensors[key] = to_onnx(weight.t().contiguous(), key, "fp32" if index in wide else precision)
    return tensors


def to_onnx(weight: Tensor, name: str, precision: str) -> onnx.TensorProto:
    """Return a float32 tensor as an initializer of a precision."""
    weight = weight.to(DTYPES[precision])
    kinds = {
        torch.float32: onnx.TensorProto.FLOAT,
        torch.float16: onnx.TensorProto.FLOAT16,
        torch.bfloat16: onnx.TensorProto.BFLOAT16,
    }
    data = weight.cpu().view(torch.uint8).numpy().tobytes()
    return onnx.TensorProto(name=name, dims=weight.shape, data_type=kinds[weight.dtype], raw_data=data)

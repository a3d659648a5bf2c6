"""The weights of a bundle: one file, every distinct tensor once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType

import onnx
import torch
from onnx import numpy_helper
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tocom.compensator import Compensator
from tocom.export.trace import DTYPES, projection_name

__all__ = ["WeightStore", "projection_weights", "tensor_bytes"]

# Smaller tensors stay in the ONNX file: shapes and scalars, which parsers want to see at once.
_MIN_EXTERNAL_BYTES = 1024
# ONNX's external data may be memory-mapped; mapping works on pages.
_PAGE_BYTES = 4096
_BIG_BYTES = 1 << 20
_ALIGN_BYTES = 64


class WeightStore:
    """Write tensors to an external-data file, equal ones once (by the sha256 of their bytes).

    Args:
        path: The file to write. ONNX files beside it refer to it by its name.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file = path.open("wb")
        self._places: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> WeightStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def place(self, tensor: onnx.TensorProto) -> None:
        """Move a tensor's bytes into the file, in place; small ones stay where they are."""
        data = numpy_helper.to_array(tensor).tobytes() if not tensor.raw_data else tensor.raw_data
        if len(data) < _MIN_EXTERNAL_BYTES:
            return
        key = hashlib.sha256(data).hexdigest()
        if key not in self._places:
            align = _PAGE_BYTES if len(data) >= _BIG_BYTES else _ALIGN_BYTES
            self._file.write(b"\0" * (-self._file.tell() % align))
            self._places[key] = (self._file.tell(), len(data))
            self._file.write(data)
        offset, length = self._places[key]
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "external_data"):
            tensor.ClearField(field)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for name, value in (("location", self._name), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=name, value=value)


def projection_weights(
    model: VisionTransformer,
    *,
    precision: str,
    compensator: Compensator | None = None,
    source: int = 0,
    target: int = 0,
    scale: float | None = None,
) -> dict[str, onnx.TensorProto]:
    """Return the initializers of q and v at a degree: ``W + s · ToCom(source → target)`` in float32, then cast.

    The attention's scale stands in q's weights, as :func:`tocom.export.trace.trace` folds it into q's bias.
    """
    delta: dict[str, Tensor] = {}
    factor = 0.0
    if compensator is not None and source != target:
        delta = compensator.delta(source, target)
        factor = compensator.check_scale(scale)
    tensors: dict[str, onnx.TensorProto] = {}
    for index, block in enumerate(model.blocks):
        q, _, v = block.attn.qkv.weight.detach().float().chunk(3)
        for name, weight in (("q", q), ("v", v)):
            if delta:
                weight = weight + factor * delta[f"blocks.{index}.attn.{name}"]
            if name == "q" and isinstance(block.attn.q_norm, nn.Identity):
                weight = weight * block.attn.scale
            key = projection_name(index, name, "weight")
            tensors[key] = _to_onnx(weight.t().contiguous().to(DTYPES[precision]), key)
    return tensors


def tensor_bytes(path: Path) -> int:
    """Return what one degree would take alone: its ONNX file and the weights that it refers to, in bytes."""
    graph = onnx.load(path, load_external_data=False).graph
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in graph.initializer]
    # By offset: several initializers may be one stored tensor.
    return path.stat().st_size + sum({place["offset"]: int(place["length"]) for place in places if place}.values())


def _to_onnx(weight: Tensor, name: str) -> onnx.TensorProto:
    kinds = {
        torch.float32: onnx.TensorProto.FLOAT,
        torch.float16: onnx.TensorProto.FLOAT16,
        torch.bfloat16: onnx.TensorProto.BFLOAT16,
    }
    data = weight.cpu().view(torch.uint8).numpy().tobytes()
    return onnx.TensorProto(name=name, dims=weight.shape, data_type=kinds[weight.dtype], raw_data=data)

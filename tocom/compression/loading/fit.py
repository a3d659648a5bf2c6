"""Put tensors by timm's names into a timm model: through timm's own filter, and then strictly."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timm.models.eva import Eva
from timm.models.eva import checkpoint_filter_fn as eva_filter_fn
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from tocom.compression.loading.readers.part import Found
from tocom.errors import ModelError, first_line

__all__ = ["check_finite", "fit", "fit_npz", "npz_classes", "side_of_positions"]


def side_of_positions(model: VisionTransformer, found: Found) -> int | None:
    """Return the side in pixels of the square image that a checkpoint's positions are of.

    Returns:
        None where the checkpoint has no learned positions, or as many as the model.

    Raises:
        ModelError: They make no square, so the image's two sides must be given.
    """
    positions = found.state.get("pos_embed")
    count = None if positions is None else positions.shape[-2]
    if (positions := found.state.get("visual.positional_embedding")) is not None:
        count = positions.shape[0]
    if count is None or model.pos_embed is None or count == model.pos_embed.shape[1]:
        return None
    count -= model.pos_embed.shape[1] - int(model.patch_embed.num_patches)
    if "register_tokens" in found.state:
        count -= 1  # official DINOv2 gives the class token a position, timm's model with registers does not
    side = round(max(count, 0) ** 0.5)
    if side < 1 or side * side != count:
        raise ModelError(
            f"The checkpoint has positions for {count} patches, which make no square. Say the image's height and "
            "width: --image-size H,W."
        )
    return side * int(model.patch_embed.patch_size[0])


def fit(model: VisionTransformer, name: str, path: Path | str, found: Found) -> str | None:
    """Load a state dict strictly, after timm's filter has renamed and resampled it.

    Returns:
        What was resampled, for people, or None.

    Raises:
        ModelError: Something is missing, too much, or of another shape.
    """
    before = found.state.get("pos_embed", found.state.get("visual.positional_embedding"))
    positions = None if before is None else before.shape[-2]
    try:
        state = _filter(name, model)(dict(found.state), model)
    except Exception as error:  # timm's filter and torch's interpolation raise all kinds on tensors of other shapes
        raise ModelError(
            f"The checkpoint {path} looks like {found.family}, but timm cannot make {name} of it: {first_line(error)}. "
            "Check the name (--model) and --image-size."
        ) from error
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    got = {key: tuple(tensor.shape) for key, tensor in state.items()}
    problems = [f"missing {key}" for key in expected if key not in got]
    problems += [f"unexpected {key}" for key in got if key not in expected]
    problems += [
        f"{key} has shape {got[key]}, expected {expected[key]}"
        for key in expected
        if got.get(key, expected[key]) != expected[key]
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(
            f"The checkpoint {path} looks like {found.family} but does not fit {name}: {'; '.join(problems[:3])}{more}."
            " Check the name (--model), and --model-kwargs for options that it was trained with."
        )
    check_finite(state, path)
    model.load_state_dict(state, strict=True)
    after = state.get("pos_embed")
    if after is None or positions is None or model.pos_embed is None:
        return None
    extra = model.pos_embed.shape[1] - int(model.patch_embed.num_patches)
    old, new = round(max(positions - extra, 0) ** 0.5), model.patch_embed.grid_size
    if torch.equal(before.reshape(-1).float(), after.reshape(-1).float()) or (old, old) == tuple(new):
        return None
    how = "bilinear" if "flexi" in name or "radio" in name else "bicubic"
    return f"positions {old}×{old} → {new[0]}×{new[1]} by {how}"


def check_finite(state: Mapping[str, Tensor], where: Path | str) -> None:
    """Raise ModelError for the first tensor that holds NaN or infinity."""
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError(
                f"The weights {where} hold NaN or infinity in {key}: the training diverged, or the file is damaged. "
                "Take an earlier checkpoint."
            )


def npz_classes(path: Path) -> int:
    """Return how many classes Google's ``.npz`` weights have, 0 for none.

    Raises:
        ModelError: It is not an archive of arrays.
    """
    return next((shape[-1] for key, shape in _npz_shapes(path).items() if key.endswith("head/bias")), 0)


def fit_npz(model: VisionTransformer, name: str, path: Path) -> str:
    """Load Google's ``.npz`` weights (AugReg, SigLIP) by timm's own reader, which resamples positions too.

    Raises:
        ModelError: It is of another layout or size.
    """
    shapes = _npz_shapes(path)
    keys = list(shapes)
    stacked = next((shape[0] for key, shape in shapes.items() if "encoderblock/LayerNorm_0/scale" in key), None)
    depth = stacked or len({key.split("encoderblock_")[1].split("/")[0] for key in keys if "encoderblock_" in key})
    if depth and depth != len(model.blocks):
        raise ModelError(f"The checkpoint {path} has {depth} blocks, {name} has {len(model.blocks)}. Check the name.")
    try:
        model.load_pretrained(str(path))
    except Exception as error:  # as above
        raise ModelError(
            f"The checkpoint {path} is an archive of arrays that timm does not make {name} of: {first_line(error)}. It "
            f"begins with {', '.join(keys[:3])}. Check the name (--model)."
        ) from error
    check_finite(model.state_dict(), path)
    return "Google's JAX weights"


def _npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not an archive of arrays")
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key].shape for key in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(f"Cannot read the checkpoint {path}: {first_line(error)}. Copy it again.") from error


def _filter(name: str, model: VisionTransformer) -> partial[dict[str, Tensor]]:
    """Return timm's filter with the options that timm gives it for this name (``_create_vision_transformer``)."""
    if isinstance(model, Eva):
        return partial(eva_filter_fn)
    options: dict[str, object] = {"adapt_layer_scale": True}
    if "flexi" in name or "radio" in name:
        options.update(interpolation="bilinear", antialias=False)
    if "base_patch16_radio_v3" in name or "huge_patch16_radio_v3" in name:
        options["align_corners"] = True
    return partial(checkpoint_filter_fn, **options)

"""Rotary positions of tokens that merge, against a reference in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from reference_rotary import forward
from small_vits import small_images, small_vit, spread_weights
from timm.models.eva import Eva
from torch import Tensor

from tocom import Compensator, compress
from tocom.compression.rotary import turn
from tocom.errors import CompensatorError, DegreeError

KINDS: dict[str, dict[str, Any]] = {
    "dinov3": {"rope_type": "dinov3", "rope_temperature": 100.0, "rope_rotate_half": True},
    "axial": {"rope_type": "cat", "rope_temperature": 100.0},
    "axial, columns first": {"rope_type": "cat", "rope_temperature": 10000.0, "rope_grid_indexing": "xy"},
    "mixed": {"rope_type": "mixed", "rope_temperature": 10.0},
    "mixed, columns first": {"rope_type": "mixed", "rope_temperature": 10.0, "rope_grid_indexing": "xy"},
}
# timm before 1.0.31 multiplies float32 coordinates with whatever type its mixed frequencies have.
IN_DOUBLE = sorted(kind for kind in KINDS if "mixed" not in kind or Version(timm.__version__) >= Version("1.0.31"))


def rotary(kind: str, grid: tuple[int, int], *, class_token: bool = True, registers: int = 0, seed: int = 0) -> Eva:
    """Return a tiny rotary model of timm: three blocks, 16 channels, two heads."""
    torch.manual_seed(seed)
    model = Eva(
        img_size=(4 * grid[0], 4 * grid[1]),
        patch_size=4,
        embed_dim=16,
        depth=3,
        num_heads=2,
        num_classes=0,
        use_fc_norm=False,
        class_token=class_token,
        num_reg_tokens=registers,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        attn_type="rope" if seed % 2 else "eva",
        qkv_fused=seed % 3 != 0,
        init_values=0.5 if seed % 2 else None,
        **KINDS[kind],
    )
    spread_weights(model, seed)
    return model.eval()


def embedded(model: Eva, images: Tensor) -> Tensor:
    """Return the tokens before the first block."""
    return model.norm_pre(model._pos_embed(model.patch_embed(images))[0])


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(IN_DOUBLE),
    grid=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    class_token=st.booleans(),
    registers=st.integers(0, 2),
    degree=st.integers(0, 4),
    way=st.sampled_from([{"method": "merge"}, {"method": "prune"}, {"method": "prune", "fuse": True}]),
    seed=st.integers(0, 5),
)
def test_compressed_rotary_models_compute_what_the_reference_computes(
    kind: str, grid: tuple[int, int], class_token: bool, registers: int, degree: int, way: dict[str, Any], seed: int
) -> None:
    model = rotary(kind, grid, class_token=class_token, registers=registers, seed=seed).double()
    degree = min(degree, grid[0] * grid[1] // 4)  # so that three blocks have as many to give
    images = small_images(model, 1, seed).double()
    with torch.inference_mode():
        got = compress(model, degree, **way).forward_features(images)[0]
        tokens = embedded(model, images)[0].numpy()
        want, _ = forward(model, tokens, degree, **way)
        want = model.norm(torch.from_numpy(want))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)  # timm takes sines and cosines in float32


@pytest.mark.parametrize("half", [False, True])
def test_a_place_of_sine_zero_and_cosine_one_turns_nothing(half: bool) -> None:
    x = torch.randn(2, 3, 5, 8)
    assert torch.equal(turn(x, torch.zeros(1, 1, 5, 4), torch.ones(1, 1, 5, 4), half=half), x)


def test_places_matter() -> None:
    """Without them, turned keys would be compared as if all were at one place."""
    model, images = rotary("axial", (4, 4)), small_images(rotary("axial", (4, 4)))
    still = rotary("axial", (4, 4))
    still.rope.pos_embed.copy_(torch.tensor([0.0] * 8 + [1.0] * 8))
    with torch.inference_mode():
        assert (compress(model, 2)(images) - compress(still, 2)(images)).abs().max() > 0.01


def test_a_mask_is_refused() -> None:
    model = rotary("axial", (4, 4))
    with pytest.raises(DegreeError, match="of the dense model alone"):
        compress(model, 2)(small_images(model), attn_mask=torch.ones(17, 17, dtype=torch.bool))
    with pytest.raises(DegreeError, match="of the dense model alone"):
        compress(model, 2).forward_intermediates(small_images(model))


def test_a_compensator_trained_with_other_positions_is_refused() -> None:
    plain, turned = small_vit(), small_vit("vit_small_patch16_rope_224")
    for theirs, ours, words in ((plain, turned, "learned"), (turned, plain, "rotary")):
        with pytest.raises(CompensatorError, match=f"was trained with {words} positions") as caught:
            compress(ours, 2, compensator=Compensator.for_model(theirs))
        assert "\n" not in str(caught.value)


def test_half_of_the_precision_stays_near() -> None:
    model = rotary("dinov3", (4, 4))
    images = small_images(model)
    with torch.inference_mode():
        want = compress(model, 2)(images)
        got = compress(model.bfloat16(), 2)(images.bfloat16())
    assert np.isfinite(got.float().numpy()).all()
    assert torch.nn.functional.cosine_similarity(got.float(), want).min() > 0.9

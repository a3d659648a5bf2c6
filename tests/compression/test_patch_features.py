"""A feature for every patch, whatever merged: against timm, and against the reference in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_rotary import forward
from small_vits import busy_compensator, small_images, small_vit
from test_rotary import IN_DOUBLE, embedded, rotary

from tocom import compress
from tocom.compression.features import patch_features
from tocom.compression.pruning import token_prune, token_prune_mapped
from tocom.errors import DegreeError, ModelError

NAMES = {
    "vit_tiny_patch16_224": {},
    "vit_small_patch14_reg4_dinov2": {"side": 70, "num_classes": 0},
    "vit_base_patch16_gap_224": {},
    "vit_small_patch16_dinov3": {"dynamic_img_size": False},
    "vit_small_patch16_rope_mixed_224": {},
    "vit_pe_core_tiny_patch16_384": {},
}


@pytest.mark.parametrize("name", NAMES)
def test_at_degree_zero_they_are_timms(name: str) -> None:
    model = small_vit(name, **NAMES[name])
    images = small_images(model)
    with torch.inference_mode():
        want = model.forward_intermediates(images, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)[0]
        assert torch.equal(patch_features(model, images), want)
        assert torch.equal(patch_features(compress(model, 0), images), want)
        beside = compress(model, 0, compensator=busy_compensator(model), source_degree=3, merged=False)
        merged = compress(model, 0, compensator=busy_compensator(model), source_degree=3)
        torch.testing.assert_close(patch_features(beside, images), patch_features(merged, images), rtol=0, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(IN_DOUBLE),
    grid=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    class_token=st.booleans(),
    registers=st.integers(0, 2),
    degree=st.integers(1, 4),
    way=st.sampled_from([{"method": "merge"}, {"method": "prune", "fuse": True}]),
    seed=st.integers(0, 5),
)
def test_patches_have_the_token_that_they_became_part_of(
    kind: str, grid: tuple[int, int], class_token: bool, registers: int, degree: int, way: dict[str, Any], seed: int
) -> None:
    model = rotary(kind, grid, class_token=class_token, registers=registers, seed=seed).double()
    degree = max(1, min(degree, grid[0] * grid[1] // 4))
    images = small_images(model, 1, seed).double()
    with torch.inference_mode():
        got = patch_features(compress(model, degree, **way), images)[0].numpy()
        tokens, shares = forward(model, embedded(model, images)[0].numpy(), degree, **way)
        tokens = model.norm(torch.from_numpy(tokens)).numpy()
    home = {patch: place for place, share in enumerate(shares) for patch in share}
    assert sorted(home) == list(range(grid[0] * grid[1]))
    np.testing.assert_allclose(got, tokens[[home[patch] for patch in sorted(home)]], rtol=0, atol=1e-6)
    # Patches of one token share one row; those of different tokens do not.
    for patch, row in enumerate(got):
        same = [other for other in home if home[other] == home[patch]]
        assert [other for other in sorted(home) if np.array_equal(got[other], row)] == sorted(same)


def test_pruning_says_where_tokens_went() -> None:
    x, score = torch.randn(2, 12, 4), torch.rand(2, 12)
    y, destination = token_prune_mapped(x, score, 3, 2, True)
    assert torch.equal(y, token_prune(x, score, 3, 2, True))
    for image in range(2):
        worst = set((2 + score[image, 2:].argsort()[:4]).tolist())
        kept = [place for place in range(12) if place not in worst]
        assert [int(destination[image, place]) for place in kept] == list(range(8))
        assert {int(destination[image, place]) for place in worst} == {8}


def test_pruning_without_fusing_is_refused() -> None:
    model = small_vit()
    with pytest.raises(DegreeError, match=r"nothing in their place\. Fuse the removed ones \(fuse=True, --fuse\)") as e:
        patch_features(compress(model, 2, method="prune"), small_images(model))
    assert "\n" not in str(e.value)


def test_a_norm_behind_the_pooling_is_refused() -> None:
    model = small_vit("eva02_tiny_patch14_224", side=70)
    for each in (model, compress(model, 2)):
        with pytest.raises(ModelError, match=r"head pools before it \(timm's fc_norm\)") as caught:
            patch_features(each, small_images(model))
        assert "\n" not in str(caught.value)


def test_gradients_and_checkpointing() -> None:
    grads = []
    for checkpointing in (False, True):
        model = small_vit().requires_grad_(False)
        compensator = busy_compensator(model)
        model.set_grad_checkpointing(checkpointing)
        student = compress(model, 3, compensator=compensator, merged=False)
        patch_features(student, small_images(model)).square().sum().backward()
        grads.append([parameter.grad for parameter in compensator.parameters()])
    assert all(torch.equal(plain, again) and plain.any() for plain, again in zip(*grads, strict=True))

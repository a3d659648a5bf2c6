"""``compress``: what it refuses, checkpointing, modes, and the arguments that do not fit together."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from families import REFUSED, Refused
from small_vits import busy_compensator, small_images, small_vit
from torch import nn

from tocom import compress
from tocom.compression.surgery import check_supported
from tocom.errors import CompensatorError, DegreeError, ModelError


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: f"{refused.name}-{len(refused.options)}")
def test_what_cannot_work_is_refused_with_the_reason(refused: Refused) -> None:
    if not timm.is_model(refused.name):
        pytest.skip(f"timm {timm.__version__} has no such model")
    model = timm.create_model(refused.name, pretrained=False, **refused.options)
    with pytest.raises(ModelError, match=refused.reason) as caught:
        compress(model, 2)
    assert "\n" not in str(caught.value)


def test_a_compressed_model_is_refused() -> None:
    with pytest.raises(ModelError, match="compressed already"):
        compress(compress(small_vit(), 2), 2)
    with pytest.raises(ModelError, match="Linear is not supported"):
        check_supported(nn.Linear(2, 2))


@pytest.mark.parametrize("method", ["merge", "prune"])
def test_gradient_checkpointing_changes_nothing(method: str) -> None:
    grads = []
    for checkpointing in (False, True):
        model = small_vit().requires_grad_(False)
        compensator = busy_compensator(model, method=method)
        model.set_grad_checkpointing(checkpointing)
        student = compress(model, 3, method=method, compensator=compensator, merged=False)
        output = student(small_images(model))
        output.square().sum().backward()
        grads.append([output.detach(), *(parameter.grad for parameter in compensator.parameters())])
        assert model.grad_checkpointing == checkpointing
    for plain, recomputed in zip(*grads, strict=True):
        assert torch.equal(plain, recomputed)


def test_checkpointing_recomputes() -> None:
    """It must be on, not only harmless: keys are computed again in the backward pass."""
    model = small_vit().requires_grad_(False)
    model.set_grad_checkpointing()
    student = compress(model, 3, compensator=busy_compensator(model), merged=False)
    calls = []
    model.blocks[1].attn.qkv.register_forward_hook(lambda *_: calls.append(1))
    student(small_images(model)).sum().backward()
    assert len(calls) == 2
    student.set_grad_checkpointing()
    with pytest.raises(DegreeError, match=r"turn on gradient checkpointing there, before compress\(\)"):
        student(small_images(model))


def test_training_flags_are_kept_as_they_are() -> None:
    model = small_vit(drop_path_rate=0.5).train()
    model.blocks[0].eval()
    flags = {name: module.training for name, module in model.named_modules()}
    twin = compress(model, 3, compensator=busy_compensator(model))
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert {name: module.training for name, module in twin.named_modules()} == flags


def test_masks_and_intermediates_of_a_compressed_model_are_errors_not_the_dense_models() -> None:
    model = small_vit()
    twin, images = compress(model, 3), small_images(model)
    with pytest.raises(DegreeError, match="of the dense model alone"):
        twin.forward_intermediates(images)
    with pytest.raises(DegreeError, match="of the dense model alone"):
        twin.forward_features(images, attn_mask=torch.ones(26, 26, dtype=torch.bool))


def test_the_swap_shows_in_the_model() -> None:
    shown = repr(compress(small_vit(), 10, method="prune", fuse=True))
    assert "method='prune', removed=[10, 7, 4], prefix=1, fuse=True" in shown


@pytest.mark.parametrize("degree", [-1, 13, 2.0, True, "4", None])
def test_bad_degrees(degree: object) -> None:
    with pytest.raises(DegreeError, match=re.escape("integer from 0 to 12 for 26 tokens with 1 protected")):
        compress(small_vit(), degree)  # type: ignore[arg-type]


def test_bad_arguments() -> None:
    model = small_vit()
    compensator = busy_compensator(model)
    with pytest.raises(DegreeError, match=r"one of merge, prune. Got 'drop'"):
        compress(model, 2, method="drop")
    with pytest.raises(DegreeError, match="'fuse' parameter belongs to method 'prune'"):
        compress(model, 2, fuse=True)
    with pytest.raises(CompensatorError, match=r"reaches degrees 0 to 6. Got degree 7"):
        compress(model, 7, compensator=compensator)
    with pytest.raises(CompensatorError, match=r"reaches degrees 0 to 6. Got degree 9"):
        compress(model, 2, compensator=compensator, source_degree=9)
    with pytest.raises(DegreeError, match="from 0 to 12"):
        compress(model, 2, source_degree=13)
    with pytest.raises(CompensatorError, match="trained for method 'merge', asked for is 'prune'"):
        compress(model, 2, method="prune", compensator=compensator)
    for scale in (float("nan"), float("inf")):
        with pytest.raises(CompensatorError, match="'scale' parameter must be a finite number"):
            compress(model, 2, compensator=compensator, scale=scale)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 96}, "has channels 96, the model vit_tiny_patch16_224 has 64"),
        ({"depth": 4}, "has depth 4, the model vit_tiny_patch16_224 has 3"),
    ],
)
def test_a_compensator_of_another_shape(options: dict[str, int], message: str) -> None:
    with pytest.raises(CompensatorError, match=message):
        compress(small_vit(), 2, compensator=busy_compensator(small_vit(**options)))


def test_scale_and_source_degree() -> None:
    """Twice the scale is twice the change; at the source degree itself nothing changes."""
    model = small_vit()
    compensator = busy_compensator(model)
    base = model.blocks[1].attn.qkv.weight
    once, twice = (
        compress(model, 4, compensator=compensator, source_degree=1, scale=scale).blocks[1].attn.qkv.weight - base
        for scale in (0.1, 0.2)
    )
    torch.testing.assert_close(2 * once, twice, rtol=1e-4, atol=1e-6)
    assert once[64:128].abs().max() == 0  # keys stay
    same = compress(model, 4, compensator=compensator, source_degree=4)
    assert same.blocks[1].attn.qkv is model.blocks[1].attn.qkv


def test_cosine_of_a_compressed_model_falls_with_the_degree() -> None:
    """More tokens removed, further from the dense model: on average over images, for both methods."""
    model = small_vit(side=128)
    images = small_images(model, 16)
    with torch.inference_mode():
        dense = model(images)
        for method in ("merge", "prune"):
            near, far = ((compress(model, r, method=method)(images) - dense).norm() for r in (2, 24))
            assert 0 < near < far

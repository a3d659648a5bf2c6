"""``compress`` on every supported family: the table is in families.py."""

from __future__ import annotations

import pytest
import timm
import torch
from families import FAMILIES, GRID, Family
from small_vits import busy_compensator, small_images
from timm.models.vision_transformer import VisionTransformer

from tocom import Compensator, compress
from tocom.compression.blocks import CompressedBlocks, with_blocks
from tocom.compression.surgery import input_tokens
from tocom.compression.tokens import removable, removal_schedule, token_counts

METHODS = ({"method": "merge"}, {"method": "prune"}, {"method": "prune", "fuse": True})


def _parameter(family: Family):
    later = pytest.mark.skipif(not family.known, reason=f"timm {timm.__version__} has no such model")
    return pytest.param(family, id=f"{family.name}-{family.group}", marks=later)


each_family = pytest.mark.parametrize("family", [*map(_parameter, FAMILIES)])


@pytest.fixture
def model(family: Family) -> VisionTransformer:
    return family.build()


def test_the_table_is_broad() -> None:
    assert len({family.name for family in FAMILIES}) >= 24
    assert {family.pooling for family in FAMILIES} == {"token", "avg", "map"}


@each_family
def test_degree_zero_is_timms_model_bit_for_bit(family: Family, model: VisionTransformer) -> None:
    assert (model.num_prefix_tokens, model.global_pool) == (family.prefix, family.pooling)
    assert input_tokens(model) == GRID**2 + family.prefix
    images = small_images(model)
    with torch.inference_mode():
        want = model(images)
        assert torch.equal(compress(model, 0)(images), want)
        blocks = CompressedBlocks(list(model.blocks), (0, 0, 0), method="merge", prefix=family.prefix)
        assert torch.equal(with_blocks(model, blocks)(images), want)
        # An untrained compensator adds zero, but by way of the attention that is written out here.
        beside = compress(model, 0, compensator=Compensator.for_model(model), source_degree=4, merged=False)
        torch.testing.assert_close(beside(images), want, rtol=0, atol=1e-5)


@each_family
def test_token_counts_are_as_predicted(family: Family, model: VisionTransformer) -> None:
    tokens, images = input_tokens(model), small_images(model)
    seen: list[int] = []
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    model.norm.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    cap = removable(tokens, family.prefix)
    for options in METHODS:
        outputs = []
        for degree in (1, 4, cap):
            seen.clear()
            with torch.inference_mode():
                outputs.append(compress(model, degree, **options)(images))
            removed = removal_schedule(tokens, 3, degree, family.prefix)
            assert tuple(seen) == token_counts(tokens, removed), options
            assert removed[0] == degree
        assert removed[2] < cap  # at the cap, later blocks have less to give
        assert all(output.isfinite().all() for output in outputs)
        assert not torch.equal(outputs[0], outputs[1])


@each_family
@pytest.mark.parametrize("method", ["merge", "prune"])
def test_merged_weights_equal_the_compensator_beside_them(
    family: Family, model: VisionTransformer, method: str
) -> None:
    compensator = busy_compensator(model, method=method)
    images = small_images(model)
    for source, target in ((0, 4), (5, 2), (3, 0)):
        with torch.inference_mode():
            options = {"method": method, "compensator": compensator, "source_degree": source}
            merged = compress(model, target, **options)(images)
            beside = compress(model, target, **options, merged=False)(images)
            without = compress(model, target, method=method)(images)
        largest = max(1.0, float(without.abs().max()))
        torch.testing.assert_close(merged, beside, rtol=0, atol=1e-5 * largest)
        assert (merged - without).abs().max() > 1e-3, "the compensator changes nothing here, so this shows nothing"


@each_family
def test_the_original_is_shared_and_left_alone(family: Family, model: VisionTransformer) -> None:
    images, before = small_images(model), dict(model.named_modules())
    parameters = dict(model.named_parameters())
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        want = model(images)
        twin = compress(model, 3, compensator=busy_compensator(model), source_degree=1)
        twin(images)
        assert torch.equal(model(images), want)
    assert dict(model.named_modules()) == before
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    assert list(twin.state_dict()) == list(values)
    own = {name for name, parameter in twin.named_parameters() if parameter is not parameters[name]}
    layers = ("qkv",) if model.blocks[0].attn.qkv is not None else ("q_proj", "v_proj")
    assert own == {f"blocks.{index}.attn.{layer}.weight" for index in range(3) for layer in layers}
    assert not any(module.training for module in twin.modules())


@each_family
@pytest.mark.parametrize("method", ["merge", "prune"])
def test_gradients_reach_the_compensator_alone(family: Family, model: VisionTransformer, method: str) -> None:
    model.requires_grad_(False)
    compensator = busy_compensator(model, method=method).train()
    student = compress(model, 2, method=method, compensator=compensator, source_degree=5, merged=False)
    student(small_images(model)).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    rows = slice(2 * compensator.rank, 5 * compensator.rank)
    for name, parameter in compensator.named_parameters():
        assert parameter.grad is not None, name
        grad = parameter.grad if name.endswith("down") else parameter.grad.T
        assert grad[rows].any(), name
        assert grad.count_nonzero() == grad[rows].count_nonzero(), f"{name}: a group outside of 2 … 5 has a gradient"

"""The torch ops: the pure functions' values, shapes under tracing, torch's own op checks; the functions' gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tocom.compression import merging, ops, pruning

MERGE, PRUNE = torch.ops.tocom.token_merge, torch.ops.tocom.token_prune
assert ops  # imported for its registrations


def merge_inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 11, 3, generator=generator, dtype=dtype)
    keys = torch.randn(2, 3, 11, 4, generator=generator, dtype=dtype)
    return x, keys, torch.randint(1, 5, (2, 11, 1), generator=generator).float()


def prune_inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 11, 3, generator=generator, dtype=dtype)
    return x, torch.rand(2, 11, generator=generator, dtype=dtype)


@pytest.mark.parametrize(("r", "prefix"), [(0, 1), (1, 0), (3, 1), (5, 1), (2, 5)])
def test_merging_is_the_function(r: int, prefix: int) -> None:
    x, keys, size = merge_inputs()
    for plain, op in zip(
        merging.token_merge_mapped(x, keys, size, r, prefix), MERGE(x, keys, size, r, prefix), strict=True
    ):
        assert torch.equal(plain, op)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize(("r", "prefix"), [(1, 0), (3, 1), (5, 1), (2, 5)])
def test_pruning_is_the_function(r: int, prefix: int, fuse: bool) -> None:
    x, score = prune_inputs()
    y, _ = PRUNE(x, score, r, prefix, fuse)
    assert torch.equal(y, pruning.token_prune(x, score, r, prefix, fuse))


def test_the_fused_token_carries_a_gradient_to_the_scores() -> None:
    x, score = prune_inputs()
    score.requires_grad_()
    torch.autograd.gradcheck(lambda weight: pruning.token_prune(x, weight, 3, 1, True), score, eps=1e-7)
    pruning.token_prune(x, score, 3, 1, True).square().sum().backward()
    assert score.grad is not None
    assert (score.grad != 0).sum() == 2 * 4  # r + 1 of every image


@pytest.mark.parametrize("r", [0, 4])
def test_merge_passes_torchs_op_checks(r: int) -> None:
    torch.library.opcheck(MERGE.default, (*merge_inputs(torch.float32), r, 1))


@pytest.mark.parametrize("fuse", [False, True])
def test_prune_passes_torchs_op_checks(fuse: bool) -> None:
    torch.library.opcheck(PRUNE.default, (*prune_inputs(torch.float32), 4, 1, fuse))


def test_merge_gradients() -> None:
    x, keys, size = merge_inputs()
    torch.autograd.gradcheck(lambda leaf: merging.token_merge(leaf, keys, size, 4, 1)[0], x.clone().requires_grad_())
    x, keys, size = merge_inputs(torch.float32)
    leaf = x.to(torch.bfloat16).requires_grad_()
    y, _, _ = merging.token_merge(leaf, keys, size, 4, 1)
    y.float().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.bfloat16
    # Every output is a mean, so the shares behind each sum to one.
    torch.testing.assert_close(leaf.grad.float().sum(), torch.tensor(float(2 * 7 * 3)), rtol=1e-2, atol=0)

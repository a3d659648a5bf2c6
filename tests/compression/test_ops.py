"""The torch ops: the pure functions' values and gradients, shapes under tracing, and torch's own op checks."""

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
def test_merge_values_and_gradients_are_the_functions(r: int, prefix: int) -> None:
    x, keys, size = merge_inputs()
    results = []
    for function in (merging.token_merge, MERGE):
        leaf = x.clone().requires_grad_()
        y, y_size, log_size = function(leaf, keys, size, r, prefix)
        y.square().sum().backward()
        results.append((y.detach(), y_size, log_size, leaf.grad))
    for plain, op in zip(*results, strict=True):
        assert torch.equal(plain, op)
    torch.autograd.gradcheck(lambda leaf: MERGE(leaf, keys, size, r, prefix)[0], x.clone().requires_grad_())


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize(("r", "prefix"), [(0, 1), (1, 0), (3, 1), (5, 1), (2, 5)])
def test_prune_values_and_gradients_are_the_functions(r: int, prefix: int, fuse: bool) -> None:
    x, score = prune_inputs()
    results = []
    for function in (pruning.token_prune, PRUNE):
        leaf, weight = x.clone().requires_grad_(), score.clone().requires_grad_()
        y = function(leaf, weight, r, prefix, fuse)
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad, torch.zeros_like(score) if weight.grad is None else weight.grad))
    for plain, op in zip(*results, strict=True):
        assert torch.equal(plain, op)
    torch.autograd.gradcheck(lambda leaf: PRUNE(leaf, score, r, prefix, fuse), x.clone().requires_grad_())


def test_the_fused_token_carries_a_gradient_to_the_scores() -> None:
    x, score = prune_inputs()
    score.requires_grad_()
    torch.autograd.gradcheck(lambda weight: PRUNE(x, weight, 3, 1, True), score, eps=1e-7)
    PRUNE(x, score, 3, 1, True).square().sum().backward()
    assert score.grad is not None
    assert (score.grad != 0).sum() == 2 * 4  # r + 1 of every image


# opcheck itself reads .grad of the views that it makes.
reads_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@reads_grad
@pytest.mark.parametrize("r", [0, 4])
def test_merge_passes_torchs_op_checks(r: int) -> None:
    x, keys, size = merge_inputs(torch.float32)
    torch.library.opcheck(MERGE.default, (x.requires_grad_(), keys, size, r, 1))


@reads_grad
@pytest.mark.parametrize(("r", "fuse"), [(0, False), (4, False), (4, True)])
def test_prune_passes_torchs_op_checks(r: int, fuse: bool) -> None:
    x, score = prune_inputs(torch.float32)
    torch.library.opcheck(PRUNE.default, (x.requires_grad_(), score.requires_grad_(), r, 1, fuse))


def test_merge_gradients_in_half_precision() -> None:
    x, keys, size = merge_inputs(torch.float32)
    leaf = x.to(torch.bfloat16).requires_grad_()
    y, _, _ = MERGE(leaf, keys, size, 4, 1)
    y.float().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.bfloat16
    # Every output is a mean, so the shares behind each sum to one.
    torch.testing.assert_close(leaf.grad.float().sum(), torch.tensor(float(2 * 7 * 3)), rtol=1e-2, atol=0)

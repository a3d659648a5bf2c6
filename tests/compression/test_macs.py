"""Multiply-accumulates against the figures of the paper, and token counts as plain numbers."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_vits import small_vit

from tocom.compression.macs import count_macs
from tocom.compression.tokens import removal_schedule, token_counts
from tocom.errors import DegreeError

FIGURES = {
    "vit_base_patch16_224": {0: 17.56, 4: 15.33, 8: 13.11, 11: 11.46, 13: 10.37, 16: 8.77},
    "vit_small_patch16_224": {0: 4.60, 8: 3.42, 11: 2.99, 13: 2.71, 16: 2.29},
}


@pytest.mark.parametrize("name", FIGURES)
def test_macs_are_the_papers(name: str) -> None:
    model = timm.create_model(name, pretrained=False)
    for degree, figure in FIGURES[name].items():
        macs = count_macs(model, removal_schedule(197, 12, degree, 1))
        assert f"{macs / 1e9:.2f}" == f"{figure:.2f}", degree


@pytest.mark.parametrize("method", ["merge", "prune"])
def test_macs_are_what_torch_multiplies(method: str) -> None:
    """Counted from the real products of a forward pass, the matching and the scores included."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from tocom import compress

    for options in ({}, {"qk_norm": True}):
        model = small_vit(side=96, **options)
        for degree in (0, 3, 18):
            # Attention as plain products: not every version's counter knows the CPU's fused kernel.
            with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                compress(model, degree, method=method)(torch.zeros(1, 3, 96, 96))
            removed = removal_schedule(37, 3, degree, 1)
            assert counter.get_total_flops() == 2 * count_macs(model, removed, method=method)


@given(st.integers(0, 400), st.integers(1, 24), st.integers(0, 5), st.data())
def test_schedules_are_constant_until_the_cap(tokens: int, depth: int, prefix: int, data: st.DataObject) -> None:
    cap = max(tokens - prefix, 0) // 2
    degree = data.draw(st.integers(0, cap))
    removed = removal_schedule(tokens, depth, degree, prefix)
    counts = token_counts(tokens, removed)
    assert len(removed) == depth
    assert len(counts) == depth + 1
    for r, entering in zip(removed, counts[:-1], strict=True):
        assert r == min(degree, max(entering - prefix, 0) // 2)
    assert counts[-1] >= min(tokens, prefix)
    with pytest.raises(DegreeError, match=f"integer from 0 to {cap} "):
        removal_schedule(tokens, depth, cap + 1, prefix)


def test_token_counts_of_the_papers_model() -> None:
    assert token_counts(197, removal_schedule(197, 12, 16, 1))[1:] == (
        181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21, 11,
    )  # fmt: skip
    assert token_counts(197, removal_schedule(197, 12, 8, 1))[-1] == 101

"""Multiply-accumulates against the figures of the paper, and token counts as plain numbers."""

from __future__ import annotations

import pytest
import timm
import torch
from small_vits import small_vit

from tocom.compression.macs import count_macs
from tocom.compression.tokens import removal_schedule, token_counts

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


@pytest.mark.parametrize("family", ["every", "spaced:1"])
@pytest.mark.parametrize("method", ["merge", "prune"])
def test_macs_are_what_torch_multiplies(method: str, family: str) -> None:
    """Counted from the real products of a forward pass, the matching and the scores included."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from tocom import compress

    for options in ({}, {"qk_norm": True}):
        model = small_vit(side=96, **options)
        for degree in (0, 3, 6 if family != "every" else 18):
            # Attention as plain products: not every version's counter knows the CPU's fused kernel.
            with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                compress(model, degree, method=method, family=family)(torch.zeros(1, 3, 96, 96))
            removed = removal_schedule(37, 3, degree, 1, family)
            assert counter.get_total_flops() == 2 * count_macs(model, removed, method=method)


def test_token_counts_of_the_papers_model() -> None:
    assert token_counts(197, removal_schedule(197, 12, 16, 1))[1:] == (
        181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21, 11,
    )  # fmt: skip
    assert token_counts(197, removal_schedule(197, 12, 8, 1))[-1] == 101

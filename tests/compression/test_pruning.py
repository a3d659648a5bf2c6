"""Token pruning against an independent NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
import reference_pruning as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tocom.compression.pruning import attention_score, token_prune
from tocom.compression.tokens import removable
from tocom.errors import DegreeError


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    prefix = draw(st.integers(0, 5))
    tokens = draw(st.integers(prefix + 2, 33))
    batch = draw(st.integers(1, 3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = generator.standard_normal((batch, tokens, 5))
    score = {
        "random": lambda: generator.random((batch, tokens)),
        "tied": lambda: generator.integers(0, 3, (batch, tokens)) / 8,
        "equal": lambda: np.full((batch, tokens), 0.25),
        "zeros": lambda: np.zeros((batch, tokens)),
    }[draw(st.sampled_from(("random", "tied", "equal", "zeros")))]()
    return x, score, draw(st.integers(0, removable(tokens, prefix))), prefix


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans())
def test_equals_the_papers_text(case: tuple[np.ndarray, np.ndarray, int, int], fuse: bool) -> None:
    x, score, r, prefix = case
    y = token_prune(torch.from_numpy(x), torch.from_numpy(score), r, prefix, fuse)
    for image in range(len(x)):
        want = reference.prune(x[image], score[image], r, prefix, fuse)
        np.testing.assert_allclose(y[image].numpy(), want, rtol=1e-6, atol=1e-6)
        kept = len(want) - (1 if fuse and r else 0)
        np.testing.assert_array_equal(y[image, :kept].numpy(), want[:kept])


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_scores_are_the_attention_received(prefix: int) -> None:
    generator = torch.Generator().manual_seed(prefix)
    q, k = torch.randn(2, 2, 3, 11, 8, generator=generator)
    score = attention_score(q, k, prefix)
    assert score.shape == (2, 11)
    torch.testing.assert_close(score.sum(1), torch.ones(2))
    for image in range(2):
        want = reference.attention_score(q[image].numpy(), k[image].numpy(), prefix)
        np.testing.assert_allclose(score[image].numpy(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("fuse", [False, True])
def test_half_precision_is_the_rounded_exact_result(dtype: torch.dtype, tolerance: float, fuse: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 30, 8, generator=generator).to(dtype)
    score = torch.rand(2, 30, generator=generator)
    y = token_prune(x, score, 9, 1, fuse)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), token_prune(x.double(), score, 9, 1, fuse), rtol=tolerance, atol=tolerance)


def test_float64_stays_float64() -> None:
    """The export's check repeats a doubtful image in float64; a detour over float32 would hide the doubt."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 9, 4, generator=generator, dtype=torch.float64)
    q, k = torch.randn(2, 1, 2, 9, 4, generator=generator, dtype=torch.float64)
    score = attention_score(q, k, 1)
    assert score.dtype == torch.float64
    np.testing.assert_allclose(
        score[0].numpy(), reference.attention_score(q[0].numpy(), k[0].numpy(), 1), rtol=1e-14, atol=0
    )
    want = reference.prune(x[0].numpy(), score[0].numpy(), 3, 1, True)
    np.testing.assert_allclose(token_prune(x, score, 3, 1, True)[0].numpy(), want, rtol=1e-14, atol=1e-15)


def test_of_equal_scores_the_first_goes_first() -> None:
    x = torch.arange(8.0).reshape(1, 8, 1)
    kept = token_prune(x, torch.full((1, 8), 0.125), 3, 1, False)
    assert kept.flatten().tolist() == [0, 4, 5, 6, 7]


@pytest.mark.parametrize(("tokens", "prefix", "r"), [(10, 1, 5), (10, 1, -1), (9, 5, 3), (4, 4, 1)])
@pytest.mark.parametrize("fuse", [False, True])
def test_more_than_the_cap_is_an_error(tokens: int, prefix: int, r: int, fuse: bool) -> None:
    with pytest.raises(DegreeError, match=rf"from 0 to {(tokens - prefix) // 2} for {tokens} tokens"):
        token_prune(torch.randn(1, tokens, 4), torch.rand(1, tokens), r, prefix, fuse)

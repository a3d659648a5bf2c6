"""Token merging against two independent NumPy references: the paper's text, and its published bipartite form."""

from __future__ import annotations

import numpy as np
import pytest
import reference_merging as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tocom.compression.merging import match_tokens, merge_tokens, token_merge
from tocom.compression.tokens import removable
from tocom.errors import DegreeError

# Metrics whose lengths and products are exact in float32, so that equal scores are equal in every order of summation.
ADVERSARIAL = ("signs", "few_directions", "all_equal", "zeros", "duplicates")
KINDS = ("random", *ADVERSARIAL)


def make_metric(kind: str, tokens: int, generator: np.random.Generator) -> np.ndarray:
    if kind == "random":
        return generator.standard_normal((tokens, 16))
    if kind == "zeros":
        return np.zeros((tokens, 16))
    signs = generator.choice([-1.0, 1.0], (tokens, 16))
    if kind == "all_equal":
        signs[:] = signs[0]
    elif kind == "few_directions":  # four axes: many A tokens tie, and each with many B tokens
        signs = np.eye(16)[generator.integers(0, 4, tokens)] * generator.choice([1.0, 2.0, 0.5], (tokens, 1))
    elif kind == "duplicates":
        signs = signs[generator.integers(0, max(tokens // 3, 1), tokens)]
    return signs


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Draw tokens, metric (both [batch, tokens, …]), sizes, r and prefix."""
    prefix = draw(st.integers(0, 5))
    tokens = draw(st.integers(prefix + 2, 33))
    batch = draw(st.integers(1, 3))
    r = draw(st.integers(0, removable(tokens, prefix)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    metric = np.stack([make_metric(draw(st.sampled_from(KINDS)), tokens, generator) for _ in range(batch)])
    size = generator.integers(1, 9, (batch, tokens, 1)) if draw(st.booleans()) else np.ones((batch, tokens, 1))
    return generator.standard_normal((batch, tokens, 6)), metric, size.astype(np.float64), r, prefix


@settings(max_examples=150, deadline=None)
@given(cases())
def test_equals_the_papers_text(case: tuple[np.ndarray, np.ndarray, np.ndarray, int, int]) -> None:
    x, metric, size, r, prefix = case
    destination = match_tokens(torch.from_numpy(metric), r, prefix)
    y, y_size = merge_tokens(torch.from_numpy(x), torch.from_numpy(size).float(), destination, x.shape[1] - r)
    for image in range(len(x)):
        want, want_size, goes = reference.merge(x[image], metric[image], size[image, :, 0], r, prefix)
        assert destination[image].tolist() == goes
        np.testing.assert_array_equal(y_size[image, :, 0].numpy(), want_size)
        np.testing.assert_allclose(y[image].numpy(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [17, 50, 197])
def test_equals_the_published_form_for_one_class_token(kind: str, tokens: int) -> None:
    generator = np.random.default_rng(tokens)
    cap = removable(tokens, 1)
    for r in {0, 1, cap // 3, cap - 1, cap}:
        x = generator.standard_normal((tokens, 8))
        metric = make_metric(kind, tokens, generator)
        size = generator.integers(1, 5, (tokens, 1)).astype(np.float64)
        y, y_size, log_size = token_merge(
            *(torch.from_numpy(part)[None] for part in (x, metric[None], size.astype(np.float32))), r, 1
        )
        want, want_size = reference.published_merge(x, metric, size[:, 0], r)
        np.testing.assert_array_equal(y_size[0, :, 0].numpy(), want_size)
        np.testing.assert_allclose(log_size[0, 0, 0].numpy(), np.log(want_size), rtol=1e-6)
        np.testing.assert_allclose(y[0].numpy(), want, rtol=1e-6, atol=1e-6)


def test_a_chain_of_merges_keeps_every_patch() -> None:
    """Block after block as in a model, down to what the cap leaves: sizes always sum to the tokens at the start."""
    generator = torch.Generator().manual_seed(0)
    x, size = torch.randn(2, 197, 8, generator=generator), torch.ones(2, 197, 1)
    weighted = (x * size).sum(1)
    counts = []
    for _ in range(12):
        r = min(16, removable(x.shape[1], 1))
        x, size, _ = token_merge(x, torch.randn(2, 3, x.shape[1], 8, generator=generator), size, r, 1)
        counts.append(x.shape[1])
        assert torch.equal(size.sum(1), torch.full((2, 1), 197.0))
        torch.testing.assert_close((x * size).sum(1), weighted, rtol=1e-4, atol=1e-3)
    assert counts == [181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21, 11]


def test_unmerged_tokens_and_the_prefix_are_untouched_bit_for_bit() -> None:
    x, metric = torch.randn(1, 21, 8), torch.randn(1, 21, 8)
    size = torch.randint(1, 9, (1, 21, 1)).float()
    y, y_size, _ = token_merge(x, metric[:, None], size, 4, 3)
    destination = match_tokens(metric, 4, 3)[0]
    alone = [place for place in range(21) if (destination == destination[place]).sum() == 1]
    assert set(range(3)) <= set(alone)
    for place in alone:
        assert torch.equal(y[0, destination[place]], x[0, place])
        assert torch.equal(y_size[0, destination[place]], size[0, place])


def test_removing_none_only_reorders() -> None:
    x, size = torch.randn(2, 10, 4), torch.ones(2, 10, 1)
    y, y_size, _ = token_merge(x, torch.randn(2, 2, 10, 4), size, 0, 1)
    assert torch.equal(y, x[:, [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]])
    assert torch.equal(y_size, size)


def test_tokens_are_compared_by_the_mean_of_their_keys_over_heads() -> None:
    keys = torch.randn(2, 6, 21, 8)
    mean = np.stack([sum(keys[image, head].double().numpy() for head in range(6)) / 6 for image in range(2)])
    x, size = torch.randn(2, 21, 4), torch.ones(2, 21, 1)
    y, y_size, _ = token_merge(x, keys, size, 5, 1)
    for image in range(2):
        want, want_size, _ = reference.merge(x[image].numpy(), mean[image], size[image, :, 0].numpy(), 5, 1)
        np.testing.assert_array_equal(y_size[image, :, 0].numpy(), want_size)
        np.testing.assert_allclose(y[image].numpy(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.float64, 1e-6)])
def test_other_float_types(dtype: torch.dtype, tolerance: float) -> None:
    """The choice and the mean are made in at least float32, so a half-precision result is the rounded exact one."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 40, 8, generator=generator, dtype=torch.float64).to(dtype)
    keys = torch.randint(-1, 2, (2, 3, 40, 16), generator=generator).to(dtype)
    size = torch.randint(1, 5, (2, 40, 1), generator=generator).float()
    y, y_size, log_size = token_merge(x, keys, size, 13, 1)
    assert y.dtype == log_size.dtype == dtype
    assert y_size.dtype == torch.float32
    exact, exact_size, exact_log = token_merge(x.double(), keys.double(), size, 13, 1)
    assert torch.equal(y_size, exact_size)
    assert log_size.shape == (2, 1, 1, 27)
    torch.testing.assert_close(log_size.double(), exact_log, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_of_a_batch_is_merged_as_if_alone_and_again_the_same(kind: str) -> None:
    generator = np.random.default_rng(3)
    metric = torch.from_numpy(np.stack([make_metric(kind, 31, generator) for _ in range(4)])).float()
    together = match_tokens(metric, 9, 1)
    assert torch.equal(together, match_tokens(metric, 9, 1))
    if kind != "random":  # sums of random products may round otherwise in another batch
        alone = [match_tokens(metric[image : image + 1], 9, 1) for image in range(4)]
        assert torch.equal(together, torch.cat(alone))


def test_equal_tokens_merge_lowest_first_into_the_lowest() -> None:
    destination = match_tokens(torch.ones(1, 9, 4), 2, 1)[0].tolist()
    # A: 2 4 6 8, B: 1 3 5 7. 2 and 4 merge into 1; out come class, 6, 8, then B.
    assert destination == [0, 3, 3, 4, 3, 5, 1, 6, 2]


@pytest.mark.parametrize(("tokens", "prefix", "r"), [(10, 1, 5), (10, 1, -1), (9, 5, 3), (4, 4, 1), (3, 2, 1)])
def test_more_than_the_cap_is_an_error(tokens: int, prefix: int, r: int) -> None:
    metric = torch.randn(1, tokens, 4)
    with pytest.raises(DegreeError, match=rf"from 0 to {max(tokens - prefix, 0) // 2} for {tokens} tokens"):
        match_tokens(metric, r, prefix)

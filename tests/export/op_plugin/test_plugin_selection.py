"""The kernels' selection against a sort, and against the torch ops over more than 10,000 random cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import match_case, prune_case

from tocom.compression.merging import match_tokens
from tocom.compression.pruning import token_prune

SHARDS, CASES_PER_SHARD = 4, 2_600
# Both algorithms of the selection: counting for all sizes, and the threshold search for all sizes.
LIMITS = (4096, 0)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_matching_equals_torch_in_random_cases(host_kernels, shard):
    rng = np.random.default_rng(1000 + shard)
    for index in range(CASES_PER_SHARD):
        case = match_case(rng)
        got = host_kernels.match(case.metric, case.r, case.prefix, counting_limit=LIMITS[index % 2])
        expected = match_tokens(torch.from_numpy(case.metric), case.r, case.prefix).numpy()
        np.testing.assert_array_equal(got, expected, err_msg=f"shard {shard}, case {index}")


@pytest.mark.parametrize("shard", range(SHARDS))
def test_pruning_equals_torch_in_random_cases(host_kernels, shard):
    rng = np.random.default_rng(2000 + shard)
    for index in range(CASES_PER_SHARD):
        case = prune_case(rng)
        kept, weight = host_kernels.prune(case.score, case.r, case.prefix, case.fuse, counting_limit=LIMITS[index % 2])
        # Tokens that are their own position: what comes out says which were kept.
        positions = torch.arange(case.score.shape[1], dtype=torch.float64).expand(case.score.shape)[..., None]
        score = torch.from_numpy(case.score)
        expected = token_prune(positions, score, case.r, case.prefix, case.fuse)[..., 0]
        where = f"shard {shard}, case {index}"
        copied = expected[:, :-1] if case.fuse else expected
        np.testing.assert_array_equal(kept, copied.long().numpy(), err_msg=where)
        if case.fuse:
            assert ((weight > 0).sum(-1) <= case.r + 1).all()
            np.testing.assert_allclose(weight.sum(-1), 1.0, rtol=1e-5, err_msg=where)
            fused = (weight.astype(np.float64) * positions[..., 0].numpy()).sum(-1)
            np.testing.assert_allclose(fused, expected[:, -1].numpy(), rtol=1e-4, err_msg=where)


@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=True) | st.sampled_from([0.0, -0.0, 1.0]), min_size=1, max_size=400),
    data=st.data(),
)
def test_selection_is_the_start_of_a_stable_sort(host_kernels, values, data):
    array = np.array(values, np.float32)
    count = data.draw(st.integers(0, len(array)))
    descending = torch.from_numpy(array).argsort(descending=True, stable=True)[:count].numpy()
    ascending = torch.from_numpy(array).argsort(stable=True)[:count].numpy()
    for limit in LIMITS:
        np.testing.assert_array_equal(
            host_kernels.select(array, count, counting_limit=limit).nonzero()[0], np.sort(descending)
        )
        np.testing.assert_array_equal(
            host_kernels.select(array, count, counting_limit=limit, lowest=True).nonzero()[0], np.sort(ascending)
        )


@pytest.mark.parametrize("tokens", [4096, 4095])
@pytest.mark.parametrize("limit", LIMITS)
def test_the_longest_sequences(host_kernels, tokens, limit):
    rng = np.random.default_rng(tokens)
    score = (rng.integers(0, 500, (1, tokens)) / 512).astype(np.float32)
    kept, _ = host_kernels.prune(score, (tokens - 1) // 2, 1, False, counting_limit=limit)
    positions = torch.arange(tokens, dtype=torch.float64)[None, :, None]
    expected = token_prune(positions, torch.from_numpy(score), (tokens - 1) // 2, 1, False)
    np.testing.assert_array_equal(kept, expected[..., 0].long().numpy())


def test_rows_without_a_comparable_score_still_have_a_partner(host_kernels):
    metric = np.full((1, 9, 4), np.nan, np.float32)
    destination = host_kernels.match(metric, 3, 1)
    assert destination.min() >= 0
    assert sorted(set(destination[0].tolist())) == list(range(6))


def test_errors_become_a_status_and_one_line(host_kernels):
    assert host_kernels.error(0) == (0, "")
    status, line = host_kernels.error(1)
    assert status == -1
    assert line.startswith("tocom op plugin: host_harness.cpp:")
    assert line.endswith("value must be even, got 1")
    assert host_kernels.error(2)[1].endswith("thrown on purpose")
    assert host_kernels.error(3)[1].endswith("unknown exception")
    assert host_kernels.error(2)[0] == host_kernels.error(3)[0] == -2

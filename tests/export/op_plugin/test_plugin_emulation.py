"""The kernels themselves on a machine without a GPU: every block's 256 threads as fibers (testing/emulation/simt.h).

What is checked: indices, barriers, warp operations, and that the order of threads and blocks changes no bit. What is
not: memory order between threads of different warps beyond barriers, speed, and the compiler's code for the GPU.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_kernels import EmulatedKernels, compile_emulated_kernels
from heads import in_heads
from kernel_cases import match_case, prune_case

from tocom.compression.merging import token_merge, token_merge_mapped
from tocom.compression.pruning import token_prune, token_prune_mapped
from tocom.errors import EngineError

# Multiprocessors that the launch believes in decide tile sizes and rows per block; True runs everything backwards.
MACHINES = [(2, False), (132, True)]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(scope="session")
def emulated(tmp_path_factory) -> EmulatedKernels:
    try:
        return EmulatedKernels(compile_emulated_kernels(tmp_path_factory.mktemp("emulated")))
    except EngineError as error:
        pytest.skip(str(error))


def on_every_machine(emulated, run):
    """Return the result, which must be the same bits on every machine."""
    results = []
    for machine in MACHINES:
        emulated.configure(*machine)
        results.append(run())
    for other in results[1:]:
        assert all(
            torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(results[0], other, strict=True)
        )
    return results[0]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("seed", range(6))
def test_merging(emulated, seed, dtype):
    rng = np.random.default_rng(seed)
    # One in three has enough tokens for the threshold search and for the wide tiles of matching.
    case = match_case(rng, most_tokens=700 if seed % 3 == 0 else 120)
    batch, tokens, _ = case.metric.shape
    keys = torch.from_numpy(in_heads(case.metric, 1 + seed)).to(dtype)
    x = torch.from_numpy(rng.standard_normal((batch, tokens, (1, 8, 19)[seed % 3]), np.float32)).to(dtype)
    size = torch.from_numpy(rng.integers(1, 9, (batch, tokens, 1)).astype(np.float32))
    y, size_out, log_size = on_every_machine(emulated, lambda: emulated.merge(x, keys, size, case.r, case.prefix))
    expected, expected_size, expected_log = token_merge(x, keys, size, case.r, case.prefix)
    assert torch.equal(size_out, expected_size)
    torch.testing.assert_close(log_size, expected_log, rtol=TOLERANCES[dtype], atol=0)
    torch.testing.assert_close(y, expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    (went,) = on_every_machine(emulated, lambda: (emulated.where_merged(x, keys, size, case.r, case.prefix),))
    assert torch.equal(went, token_merge_mapped(x, keys, size, case.r, case.prefix)[-1])


def test_merging_of_deit_small(emulated):
    rng = np.random.default_rng(7)
    metric = torch.zeros(1, 197, 64)
    places = torch.from_numpy(rng.random((1, 197, 64)).argsort(-1)[..., :16])
    metric.scatter_(2, places, torch.from_numpy(rng.choice([-1.0, 1.0], places.shape).astype(np.float32)))
    x = torch.from_numpy(rng.standard_normal((1, 197, 384), np.float32))
    size = torch.ones(1, 197, 1)
    keys = torch.from_numpy(in_heads(metric.numpy(), 6))
    y, size_out, _ = on_every_machine(emulated, lambda: emulated.merge(x, keys, size, 16, 1))
    expected, expected_size, _ = token_merge(x, keys, size, 16, 1)
    assert torch.equal(size_out, expected_size)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow), *range(1, 6)])
def test_pruning(emulated, seed, dtype):
    rng = np.random.default_rng(100 + seed)
    case = prune_case(rng, most_tokens=500 if seed % 3 == 0 else 200)
    fuse = seed % 2 == 0
    batch, tokens = case.score.shape
    x = torch.from_numpy(rng.standard_normal((batch, tokens, (300, 8, 19)[seed % 3]), np.float32)).to(dtype)
    score = torch.from_numpy(case.score)
    (y,) = on_every_machine(emulated, lambda: (emulated.prune(x, score, case.r, case.prefix, fuse),))
    expected = token_prune(x, score, case.r, case.prefix, fuse)
    kept = tokens - case.r - fuse
    assert torch.equal(y[:, :kept], expected[:, :kept])
    torch.testing.assert_close(y[:, kept:], expected[:, kept:], rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    (went,) = on_every_machine(emulated, lambda: (emulated.where_pruned(x, score, case.r, case.prefix),))
    assert torch.equal(went, token_prune_mapped(x, score, case.r, case.prefix, True)[-1])

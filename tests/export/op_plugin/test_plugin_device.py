"""The kernels against the torch ops.

All but the last test need a GPU. Where selections must be equal, scores are exact in float32 (entries of plus or minus
a power of two, rows whose length is a power of two), so that no order of summation changes them.
"""

from __future__ import annotations

import pytest
import torch
from device_kernels import DeviceKernels, compile_device_kernels
from heads import in_heads
from op_plugin_fixtures import ARCHITECTURE

from tocom.compression.merging import key_metric, match_tokens, token_merge
from tocom.compression.pruning import token_prune
from tocom.errors import EngineError
from tocom.export.engines.backend import find_device

# One rounding to the tokens' type, after float32 sums in another order.
HEADS = 3
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SHAPES = [
    # batch, tokens, channels, head channels, r, prefix
    (1, 50, 192, 64, 8, 1),
    (1, 197, 384, 64, 16, 1),
    (3, 197, 768, 64, 98, 1),
    (2, 198, 384, 64, 13, 2),
    (1, 577, 1024, 64, 288, 1),
    (2, 201, 1408, 88, 16, 5),
    (64, 197, 384, 64, 16, 1),
    (5, 196, 320, 80, 11, 0),
    # Rows that are not a multiple of 16 bytes take the element-wise path.
    (2, 61, 193, 33, 7, 1),
    (1, 2, 3, 1, 1, 0),
    (1, 1370, 1280, 80, 64, 1),
    (1, 4096, 384, 64, 2047, 1),
    (2, 4095, 192, 64, 500, 0),
]


@pytest.fixture(scope="session")
def device_kernels(tmp_path_factory) -> DeviceKernels:
    device = find_device()
    if device is None:
        pytest.skip("needs an NVIDIA GPU")
    major, minor = device.compute_capability
    return DeviceKernels(compile_device_kernels(tmp_path_factory.mktemp("device"), major * 10 + minor))


def exact_metric(batch, tokens, channels, dtype, seed=0):
    """Rows of one or sixteen entries of plus or minus a power of two. With so few values, ties abound."""
    generator = torch.Generator().manual_seed(seed)
    entries = 16 if channels >= 16 else 1
    places = torch.rand(batch, tokens, channels, generator=generator).argsort(dim=-1)[..., :entries]
    signs = torch.randint(0, 2, places.shape, generator=generator).float() * 2 - 1
    scale = 2.0 ** torch.randint(-2, 3, (batch, tokens, 1), generator=generator)
    metric = torch.zeros(batch, tokens, channels).scatter(2, places, signs * scale)
    return metric.to(dtype)


def inputs(shape, dtype, seed=0):
    batch, tokens, channels, head_channels, _, _ = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, channels, generator=generator).to(dtype)
    size = torch.randint(1, 9, (batch, tokens, 1), generator=generator).float()
    keys = torch.from_numpy(in_heads(exact_metric(batch, tokens, head_channels, torch.float32, seed).numpy(), HEADS))
    return x.cuda(), keys.to(dtype).cuda(), size.cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_merging_equals_torch(device_kernels, shape, dtype):
    x, keys, size = inputs(shape, dtype)
    r, prefix = shape[4:]
    y, size_out, log_size = device_kernels.merge(x, keys, size, r, prefix)
    expected, expected_size, expected_log = token_merge(x.cpu(), keys.cpu(), size.cpu(), r, prefix)
    torch.testing.assert_close(log_size.cpu(), expected_log, rtol=TOLERANCES[dtype], atol=0)
    torch.testing.assert_close(size_out.cpu(), expected_size, rtol=0, atol=0)
    torch.testing.assert_close(y.cpu(), expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    # What nothing merged with is a copy, bit by bit.
    destination = match_tokens(key_metric(keys.cpu()), r, prefix)
    for sequence in range(min(len(x), 4)):
        counts = torch.bincount(destination[sequence], minlength=y.shape[1])
        alone = counts[destination[sequence]] == 1
        copied = y.cpu()[sequence, destination[sequence, alone]]
        assert torch.equal(copied, x.cpu()[sequence, alone])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_pruning_equals_torch(device_kernels, shape, fuse, dtype):
    batch, tokens, channels, _, r, prefix = shape
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, tokens, channels, generator=generator).to(dtype)
    # Few values, so that ties decide.
    score = torch.randint(0, max(tokens // 4, 2), (batch, tokens), generator=generator).float() / 1024
    y = device_kernels.prune(x.cuda(), score.cuda(), r, prefix, fuse).cpu()
    expected = token_prune(x, score, r, prefix, fuse)
    kept = tokens - r - fuse
    assert torch.equal(y[:, :kept], expected[:, :kept])
    torch.testing.assert_close(y[:, kept:], expected[:, kept:], rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@pytest.mark.gpu
def test_equal_scores_go_to_the_lower_index(device_kernels):
    x = torch.arange(2 * 33 * 8, dtype=torch.float32).reshape(2, 33, 8).cuda()
    keys = torch.ones(2, 2, 33, 16).cuda()
    size = torch.ones(2, 33, 1).cuda()
    y, size_out, _ = device_kernels.merge(x, keys, size, 4, 1)
    expected, expected_size, _ = token_merge(x.cpu(), keys.cpu(), size.cpu(), 4, 1)
    torch.testing.assert_close(y.cpu(), expected)
    assert torch.equal(size_out.cpu(), expected_size)
    # All four merge into the first B token, which is output 1 + 16 - 4.
    assert size_out[0, 13].item() == 5
    pruned = device_kernels.prune(x, torch.zeros(2, 33).cuda(), 4, 1, False)
    assert torch.equal(pruned, torch.cat([x[:, :1], x[:, 5:]], dim=1))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8, 197, 384, 64, 16, 1), (2, 2048, 768, 64, 700, 1)])
def test_a_hundred_runs_give_the_same_bits(device_kernels, shape):
    x, _, size = inputs(shape, torch.float16)
    generator = torch.Generator().manual_seed(2)
    keys = torch.randn(shape[0], HEADS, shape[1], shape[3], generator=generator).half().cuda()
    score = keys[:, 0].float().square().sum(dim=-1)
    r, prefix = shape[4:]
    first, first_size, _ = device_kernels.merge(x, keys, size, r, prefix)
    first_pruned = device_kernels.prune(x, score, r, prefix, True)
    for _ in range(100):
        again, again_size, _ = device_kernels.merge(x, keys, size, r, prefix)
        assert torch.equal(first.view(torch.int16), again.view(torch.int16))
        assert torch.equal(first_size, again_size)
        pruned = device_kernels.prune(x, score, r, prefix, True)
        assert torch.equal(first_pruned.view(torch.int16), pruned.view(torch.int16))


@pytest.mark.gpu
def test_capture_in_a_cuda_graph(device_kernels):
    shape = (4, 197, 384, 64, 16, 1)
    x, keys, size = inputs(shape, torch.float16)
    score = keys[:, 0].float().square().sum(dim=-1)
    y = torch.empty(4, 181, 384, dtype=x.dtype, device="cuda")
    size_out = torch.empty(4, 181, 1, device="cuda")
    log_size = torch.empty(4, 1, 1, 181, dtype=x.dtype, device="cuda")
    workspace = torch.empty(device_kernels.workspace_bytes(4, 197, 1), dtype=torch.uint8, device="cuda")
    device_kernels.merge_into(x, keys, size, y, size_out, log_size, workspace, 16, 1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        status = device_kernels.merge_into(x, keys, size, y, size_out, log_size, workspace, 16, 1)
        pruned = device_kernels.prune(x, score, 16, 1, False)
    assert status == 0
    other_x, other_keys, other_size = inputs(shape, torch.float16, seed=5)
    x.copy_(other_x)
    keys.copy_(other_keys)
    size.copy_(other_size)
    graph.replay()
    torch.cuda.synchronize()
    expected, expected_size, expected_log = device_kernels.merge(other_x, other_keys, other_size, 16, 1)
    assert torch.equal(y, expected)
    assert torch.equal(size_out, expected_size)
    assert torch.equal(log_size, expected_log)
    assert torch.equal(pruned, device_kernels.prune(other_x, score, 16, 1, False))


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "r"), [(197, 99), (197, 0), (4097, 16)])
def test_shapes_without_a_meaning_are_refused(device_kernels, tokens, r):
    x = torch.zeros(1, tokens, 16).cuda()
    with pytest.raises(RuntimeError, match="CUDA error 1"):
        device_kernels.prune(x, torch.zeros(1, tokens).cuda(), r, 1, False)


@pytest.mark.slow
def test_a_launch_that_fails_is_a_status(tmp_path):
    """Without a GPU every launch fails, and says so."""
    if find_device() is not None:
        pytest.skip("needs a machine without a GPU")
    try:
        kernels = DeviceKernels(compile_device_kernels(tmp_path, ARCHITECTURE))
    except EngineError as error:
        pytest.skip(str(error))
    x, size = torch.zeros(1, 17, 16), torch.ones(1, 17, 1)
    with pytest.raises(RuntimeError, match="token_merge: CUDA error"):
        kernels.merge(x, x[:, None], size, 4, 1)
    with pytest.raises(RuntimeError, match="token_prune: CUDA error"):
        kernels.prune(x, size[..., 0], 4, 1, False)

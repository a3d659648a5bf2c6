"""The compensator's algebra, its layout, and the merge into a model's weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vits import busy_compensator, small_vit
from torch import Tensor

from tocom import Compensator
from tocom.compensator.compensator import model_sha256
from tocom.compression.surgery import merge_compensator
from tocom.errors import CompensatorError, DegreeError, TocomError


@st.composite
def compensators(draw: st.DrawFn) -> Compensator:
    compensator = Compensator(
        depth=draw(st.integers(1, 2)),
        channels=draw(st.sampled_from((8, 24, 33))),
        attention_channels=draw(st.sampled_from((None, 16))),
        groups=draw(st.integers(1, 9)),
        rank=draw(st.integers(1, 3)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    with torch.no_grad():
        for parameter in compensator.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return compensator


def degree_of(data: st.DataObject, compensator: Compensator) -> int:
    return data.draw(st.integers(0, compensator.groups))


def size_of(compensator: Compensator) -> float:
    """Return how large the numbers get: rounding is relative to it."""
    whole = compensator.delta(0, compensator.groups)
    return max(1.0, *(float(matrix.abs().max()) for matrix in whole.values())) * compensator.groups


@settings(max_examples=60, deadline=None)
@given(compensators(), st.data())
def test_there_and_back_is_nothing(compensator: Compensator, data: st.DataObject) -> None:
    m, n = degree_of(data, compensator), degree_of(data, compensator)
    there, back = compensator.delta(m, n), compensator.delta(n, m)
    assert all(torch.equal(there[key], -back[key]) for key in there)
    assert not any(matrix.any() for matrix in compensator.delta(m, m).values())


@settings(max_examples=60, deadline=None)
@given(compensators(), st.data())
def test_two_steps_are_one(compensator: Compensator, data: st.DataObject) -> None:
    m, n, p = (degree_of(data, compensator) for _ in range(3))
    first, second, both = compensator.delta(m, n), compensator.delta(n, p), compensator.delta(m, p)
    for key, matrix in both.items():
        torch.testing.assert_close(first[key] + second[key], matrix, rtol=0, atol=1e-6 * size_of(compensator))


@settings(max_examples=40, deadline=None)
@given(compensators(), st.data())
def test_rank_is_bounded_and_groups_are_what_they_say(compensator: Compensator, data: st.DataObject) -> None:
    m, n = sorted((degree_of(data, compensator), degree_of(data, compensator)))
    rank = compensator.rank
    for key, matrix in compensator.delta(m, n).items():
        bound = rank * (n - m)
        assert torch.linalg.matrix_rank(matrix.double(), rtol=1e-4) <= bound
        low_rank = compensator.get_submodule(key)
        want = torch.zeros_like(matrix)
        for group in range(m, n):
            rows = slice(group * rank, (group + 1) * rank)
            want += low_rank.up[:, rows] @ low_rank.down[rows]
        torch.testing.assert_close(matrix, want.detach(), rtol=0, atol=1e-6 * size_of(compensator))


@settings(max_examples=40, deadline=None)
@given(compensators(), st.data())
def test_the_low_rank_path_is_the_matrix(compensator: Compensator, data: st.DataObject) -> None:
    m, n = sorted((degree_of(data, compensator), degree_of(data, compensator)))
    x = torch.randn(2, 3, compensator.channels)
    compensator.eval()
    for key, matrix in compensator.delta(m, n).items():
        got = compensator.get_submodule(key)(x, m, n, 0.1)
        torch.testing.assert_close(got, 0.1 * x @ matrix.T, rtol=1e-4, atol=1e-4 * size_of(compensator))


def test_dropout_acts_in_training_alone() -> None:
    model = small_vit()
    low_rank = busy_compensator(model, groups=12).blocks[0].attn.q
    x = torch.randn(1, 400, 64)
    torch.manual_seed(0)
    assert torch.equal(low_rank(x, 0, 12, 1.0), low_rank(x, 0, 12, 1.0))
    low_rank.train()
    noisy = torch.stack([low_rank(x, 0, 12, 1.0) for _ in range(40)])
    assert not torch.equal(noisy[0], noisy[1])
    low_rank.eval()
    exact = low_rank(x, 0, 12, 1.0)
    assert (noisy.mean(0) - exact).norm() < 0.1 * exact.norm()


def test_the_layout_is_the_formats() -> None:
    compensator = Compensator(depth=2, channels=24, attention_channels=16, groups=5, rank=3)
    shapes = {name: tuple(tensor.shape) for name, tensor in compensator.state_dict().items()}
    assert shapes == {
        f"blocks.{block}.attn.{name}.{part}": shape
        for block in range(2)
        for name in ("q", "v")
        for part, shape in (("down", (15, 24)), ("up", (16, 15)))
    }
    assert not any(tensor.any() for name, tensor in compensator.state_dict().items() if name.endswith("up"))
    assert all(tensor.any() for name, tensor in compensator.state_dict().items() if name.endswith("down"))


def test_size_of_the_papers_compensator() -> None:
    """DeiT-B, 16 groups of rank 2: 1,179,648 parameters."""
    compensator = Compensator(depth=12, channels=768, groups=16, rank=2)
    assert sum(parameter.numel() for parameter in compensator.parameters()) == 1_179_648
    assert compensator.describe()["parameters"] == 1_179_648


def merged_weight(model: torch.nn.Module, block: int) -> Tensor:
    return model.blocks[block].attn.qkv.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_adds_to_q_and_v_in_float32_then_casts(dtype: torch.dtype) -> None:
    model = small_vit().to(dtype)
    compensator = busy_compensator(model)
    merged = merge_compensator(model, compensator, 1, 5)
    for index in range(3):
        base = merged_weight(model, index).detach().float()
        delta = compensator.delta(1, 5)
        want = base.clone()
        want[:64] += compensator.scale * delta[f"blocks.{index}.attn.q"]
        want[128:] += compensator.scale * delta[f"blocks.{index}.attn.v"]
        assert torch.equal(merged_weight(merged, index), want.to(dtype))
        assert merged.blocks[index].attn.qkv.bias is model.blocks[index].attn.qkv.bias


def test_the_fingerprint_of_a_model_changes_with_any_weight() -> None:
    model = small_vit()
    before = model_sha256(model)
    assert model_sha256(small_vit()) == before
    with torch.no_grad():
        model.blocks[2].mlp.fc2.bias[0] += 1e-6
    assert model_sha256(model) != before
    assert Compensator.for_model(model).metadata["base_sha256"] == model_sha256(model)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"depth": 0}, CompensatorError),
        ({"channels": -1}, CompensatorError),
        ({"groups": 2.0}, CompensatorError),
        ({"rank": 0}, CompensatorError),
        ({"scale": 0.0}, CompensatorError),
        ({"scale": float("nan")}, CompensatorError),
        ({"method": "drop"}, DegreeError),
    ],
)
def test_bad_sizes(options: dict[str, object], error: type[TocomError]) -> None:
    with pytest.raises(error, match=f"'{next(iter(options))}' parameter must be"):
        Compensator(**{"depth": 1, "channels": 8, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("degree", [-1, 7, 1.5, True, None])
def test_degrees_out_of_reach(degree: object) -> None:
    compensator = Compensator(depth=1, channels=8, groups=6)
    for pair in ((0, degree), (degree, 0)):
        with pytest.raises(CompensatorError, match=r"reaches degrees 0 to 6. Got degree"):
            compensator.delta(*pair)  # type: ignore[arg-type]

"""Schedules: how many tokens each block removes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_vits import busy_compensator, small_images, small_vit

from tocom import compress
from tocom.compression.tokens import removable, removal_schedule, token_counts
from tocom.errors import CompensatorError, DegreeError


@given(depth=st.integers(2, 40), degree=st.integers(0, 30))
def test_decreasing_removes_as_much_as_constant_earlier(depth: int, degree: int) -> None:
    tokens = 1 + 4 * degree * depth + 4  # so many that nothing is capped
    removed = removal_schedule(tokens, depth, degree, 1, "decreasing")
    assert sum(removed) == degree * depth
    assert (removed[0], removed[-1]) == (2 * degree, 0)
    assert list(removed) == sorted(removed, reverse=True)
    line = [2 * degree * (depth - 1 - index) / (depth - 1) for index in range(depth)]
    assert all(abs(count - exact) < 1 for count, exact in zip(removed, line, strict=True))


def test_known_schedules() -> None:
    assert removal_schedule(197, 12, 8, 1, "decreasing") == (16, 15, 14, 12, 11, 9, 7, 5, 4, 2, 1, 0)
    assert removal_schedule(197, 3, 8, 1, "decreasing") == (16, 8, 0)
    assert removal_schedule(197, 1, 8, 1, "decreasing") == (8,)
    assert removal_schedule(26, 3, [5, 0, 2], 1) == (5, 0, 2)
    # The plain schedule is capped where a block has too little; so is the decreasing one.
    assert removal_schedule(26, 4, 6, 1, "decreasing") == (12, 6, 3, 0)


@pytest.mark.parametrize("degree", [[4, 0, 2], [0, 0, 3], [12, 6, 3]])
@pytest.mark.parametrize("method", ["merge", "prune"])
def test_compress_follows_a_list(degree: list[int], method: str) -> None:
    model = small_vit()
    seen: list[int] = []
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    model.norm.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    with torch.inference_mode():
        output = compress(model, degree, method=method)(small_images(model))
    assert tuple(seen) == token_counts(26, degree)
    assert output.isfinite().all()


def test_equal_numbers_are_the_constant_degree_and_none_is_the_dense_model() -> None:
    model = small_vit()
    images = small_images(model)
    with torch.inference_mode():
        assert torch.equal(compress(model, [3, 3, 3])(images), compress(model, 3)(images))
        assert torch.equal(compress(model, [4, 2, 0])(images), compress(model, 2, schedule="decreasing")(images))
        assert not torch.equal(compress(model, [4, 2, 0])(images), compress(model, 2)(images))
        assert torch.equal(compress(model, (0, 0, 0))(images), model(images))


@pytest.mark.parametrize(
    ("degree", "options", "message"),
    [
        ([1, 2], {}, r"one number per block \(3\).*Got 2 numbers"),
        ([1, 2, 3], {"schedule": "decreasing"}, "no other schedule"),
        ([13, 0, 0], {}, "Block 0 is to remove 13 of 26 tokens .* 0 to 12"),
        ([12, 7, 0], {}, "Block 1 is to remove 7 of 14 tokens .* 0 to 6"),
        ([1, -1, 0], {}, "Block 1 is to remove -1"),
        ([1, True, 0], {}, "Block 1 is to remove True"),
        ("111", {}, "must be an integer from 0 to 12"),
        (7, {"schedule": "decreasing"}, "from 0 to 6 .* removes twice the degree"),
        (3, {"schedule": "growing"}, "one of constant, decreasing"),
    ],
)
def test_impossible_schedules_are_refused(degree: object, options: dict[str, str], message: str) -> None:
    with pytest.raises(DegreeError, match=message):
        compress(small_vit(), degree, **options)  # type: ignore[arg-type]
    assert removable(26, 1) == 12


@pytest.mark.parametrize(("degree", "options"), [([2, 2, 2], {}), (2, {"schedule": "decreasing"})])
def test_a_compensator_wants_a_constant_degree(degree: object, options: dict[str, str]) -> None:
    model = small_vit()
    for merged in (True, False):
        with pytest.raises(CompensatorError, match="the same in every block: it says nothing of"):
            compress(model, degree, compensator=busy_compensator(model), merged=merged, **options)  # type: ignore[arg-type]

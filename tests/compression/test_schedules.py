"""Families of schedules: how many tokens each block removes as the degree grows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_vits import busy_compensator, small_images, small_vit
from timm.models.vision_transformer import VisionTransformer

from tocom import compress
from tocom.compression.tokens import largest_degree, removable, removal_schedule, token_counts
from tocom.errors import CompensatorError, DegreeError
from tocom.formats.families import EVERY, every_nth, family_shares, named_family, spaced_family

SPACED = "spaced:0,2"  # of small_vit's three blocks


@st.composite
def families(draw: st.DrawFn) -> tuple[str, int]:
    """Return a family and the depth that it is for."""
    depth = draw(st.integers(1, 30))
    blocks = draw(st.sets(st.integers(0, depth - 1), min_size=1))
    return draw(st.sampled_from([EVERY, spaced_family(blocks, depth)])), depth


def test_known_families() -> None:
    assert family_shares(EVERY, 4) == (1, 1, 1, 1)
    assert every_nth(3, 12) == "spaced:1,4,7,10"
    assert family_shares("spaced:1,4,7,10", 12) == (0, 3, 0, 0, 3, 0, 0, 3, 0, 0, 3, 0)
    assert family_shares("spaced:1,5,9", 12) == (0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0)
    assert family_shares("spaced:0", 5) == (5, 0, 0, 0, 0)
    assert every_nth(5, 12) == "spaced:2,7"
    assert every_nth(1, 12) == every_nth(1, 1) == spaced_family(range(12), 12) == EVERY
    assert named_family("spaced:7,4,1", 12) == "spaced:1,4,7"
    # ViT-S/14 at 224 pixels: capped in the last of four.
    assert removal_schedule(257, 12, 16, 1, "spaced:1,4,7,10")[1::3] == (48, 48, 48, 48)
    assert removal_schedule(257, 12, 20, 1, "spaced:1,4,7,10")[1::3] == (60, 60, 60, 38)
    assert removal_schedule(26, 3, [5, 0, 2], 1) == (5, 0, 2)


@given(families())
def test_shares_are_of_the_nearest_blocks_and_together_the_depth(drawn: tuple[str, int]) -> None:
    family, depth = drawn
    shares = family_shares(family, depth)
    assert sum(shares) == len(shares) == depth
    merging = [block for block, share in enumerate(shares) if share]
    nearest = [min(merging, key=lambda other, block=block: abs(other - block)) for block in range(depth)]
    assert [nearest.count(block) for block in range(depth)] == list(shares)
    assert named_family(family, depth) == family


@given(families(), st.integers(0, 400), st.integers(0, 5), st.data())
def test_counts_follow_the_family_until_the_cap(
    drawn: tuple[str, int], tokens: int, prefix: int, data: st.DataObject
) -> None:
    family, depth = drawn
    cap = largest_degree(tokens, depth, prefix, family)
    degree = data.draw(st.integers(0, cap))
    removed = removal_schedule(tokens, depth, degree, prefix, family)
    counts = token_counts(tokens, removed)
    assert len(counts) == len(removed) + 1 == depth + 1
    for r, share, entering in zip(removed, family_shares(family, depth), counts[:-1], strict=True):
        assert r == min(share * degree, max(entering - prefix, 0) // 2)
    assert counts[-1] >= min(tokens, prefix)
    assert all(type(r) is int for r in removed)
    with pytest.raises(DegreeError, match=f"integer from 0 to {cap} "):
        removal_schedule(tokens, depth, cap + 1, prefix, family)


@given(families(), st.integers(1, 400), st.integers(0, 5), st.data())
def test_a_larger_degree_never_leaves_more_tokens(
    drawn: tuple[str, int], tokens: int, prefix: int, data: st.DataObject
) -> None:
    """What a compensator's algebra needs of a family, and a template traced at degree 1."""
    family, depth = drawn
    low, high = sorted(data.draw(st.lists(st.integers(0, largest_degree(tokens, depth, prefix, family)), min_size=2)))[
        :2
    ]
    fewer, more = (
        token_counts(tokens, removal_schedule(tokens, depth, degree, prefix, family)) for degree in (high, low)
    )
    assert all(a <= b for a, b in zip(fewer, more, strict=True))


@pytest.mark.parametrize("method", ["merge", "prune"])
@pytest.mark.parametrize(("degree", "family"), [([4, 0, 2], EVERY), ([0, 0, 3], EVERY), (4, SPACED), (6, SPACED)])
def test_compress_follows_the_schedule(degree: int | list[int], family: str, method: str) -> None:
    model = small_vit()
    seen: list[int] = []
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    model.norm.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    with torch.inference_mode():
        output = compress(model, degree, method=method, family=family)(small_images(model))
    assert tuple(seen) == token_counts(26, removal_schedule(26, 3, degree, 1, family))
    assert output.isfinite().all()


def test_a_family_is_its_list_and_degree_zero_is_the_dense_model() -> None:
    model = small_vit()
    images = small_images(model)
    with torch.inference_mode():
        assert torch.equal(compress(model, [3, 3, 3])(images), compress(model, 3)(images))
        assert torch.equal(compress(model, [6, 0, 3])(images), compress(model, 3, family=SPACED)(images))
        assert not torch.equal(compress(model, 3, family=SPACED)(images), compress(model, 3)(images))
        assert torch.equal(compress(model, 0, family=SPACED)(images), model(images))
        assert torch.equal(compress(model, (0, 0, 0))(images), model(images))


@pytest.mark.parametrize(
    ("degree", "options", "message"),
    [
        ([1, 2], {}, r"one number per block \(3\).*Got 2 numbers"),
        ([1, 2, 3], {"family": SPACED}, "no family beside it"),
        ([13, 0, 0], {}, "Block 0 is to remove 13 of 26 tokens .* 0 to 12"),
        ([12, 7, 0], {}, "Block 1 is to remove 7 of 14 tokens .* 0 to 6"),
        ([1, -1, 0], {}, "Block 1 is to remove -1"),
        ([1, True, 0], {}, "Block 1 is to remove True"),
        ("111", {}, "must be an integer from 0 to 12"),
        (7, {"family": SPACED}, "from 0 to 6 .* block 0 of 'spaced:0,2' takes 2 times the degree"),
        (3, {"family": "growing"}, "must be 'every', or 'spaced:'.*Got 'growing'"),
        (3, {"family": "spaced:"}, "Got 'spaced:'"),
        (3, {"family": "spaced:1,x"}, "Got 'spaced:1,x'"),
        (3, {"family": "spaced:1,3"}, "which has 3: 0 to 2. Got 3"),
        (3, {"family": "spaced:1,1"}, "Got block 1 twice"),
    ],
)
def test_impossible_schedules_are_refused(degree: object, options: dict[str, str], message: str) -> None:
    with pytest.raises(DegreeError, match=message):
        compress(small_vit(), degree, **options)  # type: ignore[arg-type]
    assert removable(26, 1) == 12


@pytest.mark.parametrize("blocks", [[], [12], [-1], [True], [1, 4, 1]])
def test_impossible_families_are_refused(blocks: list[int]) -> None:
    with pytest.raises(DegreeError, match="A spaced family must name"):
        spaced_family(blocks, 12)


@pytest.mark.parametrize("spacing", [0, 13, True])
def test_impossible_spacings_are_refused(spacing: int) -> None:
    with pytest.raises(DegreeError, match="from 1 to 12"):
        every_nth(spacing, 12)


@pytest.fixture
def model() -> VisionTransformer:
    return small_vit()


@pytest.mark.parametrize("merged", [True, False])
def test_a_compensator_keeps_to_its_family(model: VisionTransformer, merged: bool) -> None:
    spaced, every = busy_compensator(model, family=SPACED), busy_compensator(model)
    images = small_images(model)
    with torch.inference_mode():
        own = compress(model, 3, compensator=spaced, merged=merged)(images)
        assert torch.equal(own, compress(model, 3, compensator=spaced, family="spaced:2,0", merged=merged)(images))
        assert not torch.equal(own, compress(model, 3, compensator=every, merged=merged)(images))
    for compensator, family in ((spaced, EVERY), (every, SPACED)):
        with pytest.raises(CompensatorError, match=f"trained for family '{compensator.family}', asked for is"):
            compress(model, 3, compensator=compensator, family=family, merged=merged)
    with pytest.raises(CompensatorError, match="nothing of a list with a number per block"):
        compress(model, [2, 2, 2], compensator=every, merged=merged)  # type: ignore[arg-type]

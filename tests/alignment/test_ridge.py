"""The closed form against an independent one, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocom.alignment.ridge import STRENGTHS, feature_gaps, fit_first, fit_map
from tocom.errors import AlignmentError


def features(count: int, channels: int, seed: int, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Return features of a degree, and those of the source degree that they are a noisy linear map away from."""
    generator = np.random.default_rng(seed)
    wanted = generator.standard_normal((count, channels)) + 3
    mixing = np.eye(channels) + 0.3 * generator.standard_normal((channels, channels)) / channels**0.5
    return wanted @ mixing - 0.5 + noise * generator.standard_normal((count, channels)), wanted


def plain(found: np.ndarray, wanted: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Solve the penalised least squares as one ordinary system, the penalty as further rows."""
    a, b = found - found.mean(0), wanted - wanted.mean(0)
    channels = a.shape[1]
    penalty = strength * np.trace(a.T @ a) / channels
    rows = np.vstack([a, np.sqrt(penalty) * np.eye(channels)])
    aims = np.vstack([b - a, np.zeros((channels, channels))])
    change = np.linalg.lstsq(rows, aims, rcond=None)[0]
    return np.eye(channels) + change, wanted.mean(0) - found.mean(0) @ (np.eye(channels) + change)


@settings(max_examples=25, deadline=None)
@given(st.integers(30, 120), st.integers(2, 40), st.integers(0, 1000))
def test_the_map_is_the_least_squares_solution(count: int, channels: int, seed: int) -> None:
    found, wanted = features(count, channels, seed)
    fitted = fit_map(found, wanted, seed=seed)
    assert fitted.strength in STRENGTHS
    if fitted.linear is None:
        return
    matrix, offset = plain(found, wanted, fitted.strength)
    np.testing.assert_allclose(fitted.linear.matrix, matrix, rtol=0, atol=1e-4)
    np.testing.assert_allclose(fitted.linear.offset, offset, rtol=0, atol=1e-3)
    np.testing.assert_allclose(fitted.apply(found), found @ matrix + offset, rtol=0, atol=1e-3)


def test_it_closes_the_gap_of_images_that_it_never_saw() -> None:
    found, wanted = features(600, 16, 0)
    fitted = fit_map(found[:300], wanted[:300])
    without, aligned = feature_gaps(wanted[300:], found[300:]), feature_gaps(wanted[300:], fitted.apply(found[300:]))
    assert aligned.mean() < 0.1 * without.mean()
    assert fitted.closed == pytest.approx(1 - aligned.mean() / without.mean(), abs=0.05)


def test_no_image_is_part_of_its_own_figure() -> None:
    """As many channels as images: a fit on all of them would close the whole gap of noise."""
    generator = np.random.default_rng(1)
    wanted = generator.standard_normal((60, 60))
    fitted = fit_map(wanted + 0.3 * generator.standard_normal((60, 60)), wanted)
    assert fitted.aligned_gap > 0.5 * fitted.gap


def test_what_does_not_help_is_refused() -> None:
    generator = np.random.default_rng(2)
    wanted = generator.standard_normal((100, 8))
    refused = fit_map(wanted, wanted)
    assert refused.linear is None
    assert refused.closed == 0.0
    np.testing.assert_array_equal(refused.apply(wanted), wanted.astype(np.float32))


def test_images_that_are_all_alike_leave_the_identity_and_a_shift() -> None:
    wanted = np.tile(np.arange(1.0, 9.0), (40, 1))
    fitted = fit_map(wanted + np.eye(8)[0], wanted)
    assert fitted.linear is not None
    np.testing.assert_allclose(fitted.linear.matrix, np.eye(8), atol=1e-6)
    np.testing.assert_allclose(fitted.linear.offset, [-1, 0, 0, 0, 0, 0, 0, 0], atol=1e-6)
    assert (fitted.directions, fitted.strength) == (0, max(STRENGTHS))


@pytest.mark.parametrize("directions", [1, 3, 8])
def test_directions_in_which_images_differ_are_counted(directions: int) -> None:
    generator = np.random.default_rng(3)
    found = generator.standard_normal((40, directions)) @ generator.standard_normal((directions, 8)) + 5
    fitted = fit_map(found, found + 0.1 * generator.standard_normal((40, 8)))
    assert fitted.directions == directions


def test_few_images_of_many_channels_are_finite() -> None:
    found, wanted = features(25, 200, 3)
    fitted = fit_map(found, wanted)
    assert fitted.aligned_gap <= fitted.gap
    assert fitted.linear is None or np.isfinite(fitted.linear.matrix).all()


def test_other_images_judge_the_map_of_the_first() -> None:
    """What helps on images of one kind is refused where those to come are of another, and kept where they are not."""
    found, wanted = features(300, 12, 4)
    alone = fit_map(found[:200], wanted[:200], seed=1)
    judged = fit_first(found, wanted, 200, seed=1)
    np.testing.assert_array_equal(judged.linear.matrix, alone.linear.matrix)
    assert judged.strength == alone.strength
    assert judged.gap == pytest.approx(feature_gaps(wanted[200:], found[200:]).mean())
    assert judged.aligned_gap == pytest.approx(feature_gaps(wanted[200:], alone.apply(found[200:])).mean())

    same = np.concatenate([found[:200], wanted[200:]])  # a kind that compression does not move
    refused = fit_first(same, wanted, 200, seed=1)
    assert alone.used
    assert not refused.used
    assert refused.closed <= 0
    np.testing.assert_array_equal(refused.apply(found), found.astype(np.float32))
    with pytest.raises(AlignmentError, match=r"at least 25 images to check it on.* Got 24"):
        fit_first(found[:224], wanted[:224], 200)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a[:24], b[:24]), r"at least 25 images, better 200 or more\. Got 24"),
        (lambda a, b: (a, b[:, :3]), r"\[images, channels\]\. Got \(40, 4\) and \(40, 3\)"),
        (lambda a, b: (a[0], b[0]), r"must both be \[images, channels\]"),
        (lambda a, b: (np.where(a == a[7, 1], np.nan, a), b), "of the degree are not finite for 1 of 40 .* image 7"),
        (lambda a, b: (a, np.where(b == b[3, 0], np.inf, b)), "of the source degree are not finite for 1 of 40"),
    ],
)
def test_bad_features_are_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(AlignmentError, match=message):
        fit_map(*change(*features(40, 4, 0)))

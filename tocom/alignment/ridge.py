"""The closed form: ridge regression towards the identity, its strength chosen on images held out.

With ``A`` and ``B`` the centred features of a degree and of the source degree [images, channels], the map is
``y = x + (x − mean_A) W + (mean_B − mean_A)``, ``W = (AᵀA + λI)⁻¹ Aᵀ(B − A)``: ridge regression (Hoerl and Kennard,
Technometrics 12, 1970) whose penalty draws the map to the identity, not to zero. A strength is ``λ`` as a share of the
mean eigenvalue of ``AᵀA``, so that it means the same for any scale of features and any number of images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tocom.errors import AlignmentError
from tocom.formats.device_alignment import FittedDegree, Linear

__all__ = ["STRENGTHS", "FeatureMap", "check_counts", "feature_gaps", "fit_first", "fit_map", "fit_map_apart"]

_LEAST_IMAGES = 25
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_FOLDS = 5
# One-sided, 95 %: a map is kept where images that it was not fitted on show that it helps.
_Z = 1.645
# Gaps that differ by less, as a share, differ by rounding alone.
_SAME = 1e-6
Features = NDArray[np.floating]


@dataclass(frozen=True)
class FeatureMap(FittedDegree):
    """A map of features, and what images say of it that it was not fitted on.

    Attributes:
        linear: The map; None where it is refused: the identity.
    """

    linear: Linear | None

    @property
    def judged(self) -> FittedDegree:
        """What images say of it, without the map."""
        return FittedDegree(self.used, self.strength, self.gap, self.aligned_gap, self.directions)

    def apply(self, features: Features) -> NDArray[np.float32]:
        """Return features [count, channels] mapped, float32."""
        return np.asarray(features, np.float32) if self.linear is None else self.linear(features)


def fit_map(found: Features, wanted: Features, *, seed: int = 0) -> FeatureMap:
    """Fit the map from features of a degree to those of the source degree, of the same images.

    Each fifth of the images, drawn by the seed, is held out once. Together they choose the strength and say whether the
    map helps: where it does not, beyond what chance explains, it is refused. The map is then fitted on all images.

    Args:
        found: Features of the degree, [images, channels].
        wanted: Features of the source degree, [images, channels].
        seed: Seed of the fifths.

    Raises:
        AlignmentError: Fewer than 25 images, shapes that differ, or values that are not finite.
    """
    return fit_map_apart(found, wanted, seed=seed)[0]


def fit_first(found: Features, wanted: Features, count: int, *, seed: int = 0) -> FeatureMap:
    """Fit the map as :func:`fit_map` does on the first images alone; all others, where there are some, judge it.

    Images that are held out in fifths are of the kind that was fitted on: they cannot see that a map harms another
    kind. Images of what will be answered can.

    Args:
        found: Features of the degree, [images, channels].
        wanted: Features of the source degree, [images, channels].
        count: To fit on.
        seed: Seed of the fifths.

    Raises:
        AlignmentError: As :func:`fit_map`, and fewer than 25 others, but some.
    """
    fitted = fit_map(found[:count], wanted[:count], seed=seed)
    if count == len(found):
        return fitted
    check_counts(count, len(found) - count)
    others, aim = _checked(found[count:], wanted[count:])
    without, aligned = feature_gaps(aim, others), feature_gaps(aim, fitted.apply(others))
    helps = fitted.used and _helps(without - aligned)
    judged = replace(fitted, gap=float(without.mean()), aligned_gap=float(aligned.mean()))
    return judged if helps else replace(judged, used=False, linear=None)


def fit_map_apart(found: Features, wanted: Features, *, seed: int = 0) -> tuple[FeatureMap, NDArray[np.float32]]:
    """Fit the map as :func:`fit_map` does, and map every image by one that was fitted without its fifth.

    What the map is worth on other images can so be seen on the very images that it is fitted on. Where the map is
    refused, features stay as they are.

    Args:
        found: Features of the degree, [images, channels].
        wanted: Features of the source degree, [images, channels].
        seed: Seed of the fifths.

    Returns:
        The map, and the features of the images [images, channels], float32.

    Raises:
        AlignmentError: As :func:`fit_map`.
    """
    found, wanted = _checked(found, wanted)
    count = len(found)
    fold = np.random.default_rng(seed).permutation(count) % _FOLDS
    without = feature_gaps(wanted, found)
    gaps = {strength: np.empty(count) for strength in STRENGTHS}
    apart = {strength: np.empty(found.shape, np.float32) for strength in STRENGTHS}
    for number in range(_FOLDS):
        held_out = fold == number
        fit = _Ridge(found[~held_out], wanted[~held_out])
        for strength in STRENGTHS:
            matrix, offset = fit.solve(strength)
            apart[strength][held_out] = found[held_out] @ matrix + offset
            gaps[strength][held_out] = feature_gaps(wanted[held_out], apart[strength][held_out])
    # Where images are so alike that several strengths do as well, the largest: the least is learnt from noise.
    means = {each: float(gaps[each].mean()) for each in STRENGTHS}
    best = min(means.values())
    strength = max(each for each in STRENGTHS if means[each] <= best + _SAME * abs(best))
    gain = without - gaps[strength]
    fit = _Ridge(found, wanted)
    figures = strength, float(without.mean()), means[strength], fit.directions
    if not _helps(gain):
        return FeatureMap(False, *figures, None), found.astype(np.float32)
    linear = Linear(*(part.astype(np.float32) for part in fit.solve(strength)))
    return FeatureMap(True, *figures, linear), apart[strength]


def check_counts(*counts: int) -> None:
    """Raise AlignmentError where images that fit a map, or others that judge it, are too few."""
    for count, use in zip(counts, ("", " to check it on"), strict=False):
        if count < _LEAST_IMAGES:
            raise AlignmentError(
                f"Alignment needs at least {_LEAST_IMAGES} images{use}, better 200 or more. Got {count}."
            )


def feature_gaps(expected: Features, got: Features) -> NDArray[np.float64]:
    """Return per image one minus the cosine between features [count, channels]: 0 where they point the same way."""
    a, b = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray(1 - (a * b).sum(-1) / np.maximum(norms, 1e-12))


def _checked(found: Features, wanted: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the features in float64; raise AlignmentError where a map cannot be fitted on, or judged by, them."""
    if found.ndim != 2 or found.shape != wanted.shape:
        raise AlignmentError(
            f"Features of a degree and of the source degree must both be [images, channels]. Got {found.shape} and "
            f"{wanted.shape}."
        )
    count = len(found)
    check_counts(count)
    given, aim = found.astype(np.float64), wanted.astype(np.float64)
    for name, features in (("the degree", given), ("the source degree", aim)):
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if bad.size:
            raise AlignmentError(
                f"Features of {name} are not finite for {bad.size} of {count} images, the first is image {bad[0]}. "
                "Look for images or weights that are not finite."
            )
    return given, aim


def _helps(gain: NDArray[np.float64]) -> bool:
    """Return whether gaps, less those of the map [images], are positive beyond what chance explains."""
    return bool(gain.mean() > _Z * gain.std(ddof=1) / len(gain) ** 0.5)


class _Ridge:
    """The map for any strength, from one eigendecomposition."""

    def __init__(self, found: Features, wanted: Features) -> None:
        self._mean, self._shift = found.mean(axis=0), wanted.mean(axis=0) - found.mean(axis=0)
        centred = found - self._mean
        values, self._vectors = np.linalg.eigh(centred.T @ centred)
        self._values = np.maximum(values, 0)  # rounding makes zeros a little negative
        # Features are float32 at best: what that much of their size moves is not a direction.
        self._rounding = float(np.finfo(np.float32).eps ** 2 * np.square(found).sum())
        self._target = self._vectors.T @ (centred.T @ (wanted - wanted.mean(axis=0) - centred))

    @property
    def directions(self) -> int:
        """How many directions the features differ in, more than rounding explains."""
        return int((self._values > self._rounding).sum())

    def solve(self, strength: float) -> tuple[Features, Features]:
        # Images that are all alike have no direction: any penalty leaves the identity and the shift.
        penalty = strength * float(self._values.mean()) or 1.0
        change = self._vectors @ (self._target / (self._values + penalty)[:, None])
        return np.eye(len(change)) + change, self._shift - self._mean @ change

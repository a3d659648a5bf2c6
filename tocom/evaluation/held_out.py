"""Images that choices are made on, apart from those that figures are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tocom.errors import DataError, RequestError
from tocom.system.files import sha256_file

__all__ = ["Samples", "check_apart", "split_samples"]

Samples = Sequence[tuple[Path, int]]


def split_samples(samples: Samples, share: float, seed: int) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Part samples into held-out and test ones, class by class, at random by the seed.

    Args:
        samples: Paths and class indices.
        share: Share of every class that is held out, rounded, at least one image.
        seed: Seed of the choice.

    Raises:
        RequestError: ``share`` is not between 0 and 1.
        DataError: A class with fewer than two images.
    """
    if not 0 < share < 1:
        raise RequestError(f"The 'share' parameter must be between 0 and 1. Got {share!r} instead.")
    generator = torch.Generator().manual_seed(seed)
    held_out: list[tuple[Path, int]] = []
    test: list[tuple[Path, int]] = []
    for label in sorted({label for _, label in samples}):
        own = [sample for sample in samples if sample[1] == label]
        if len(own) < 2:
            raise DataError(f"The class of {own[0][0]} has one image: too few to hold some out. Add images.")
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        indices = set(torch.randperm(len(own), generator=generator)[:count].tolist())
        for index, sample in enumerate(own):
            (held_out if index in indices else test).append(sample)
    return held_out, test


def check_apart(held_out: Samples, test: Samples) -> None:
    """Raise DataError when one image, by its content, is in both sets."""
    if not held_out:
        return
    known = {sha256_file(path): path for path, _ in held_out}
    for path, _ in test:
        twin = known.get(sha256_file(path))
        if twin is not None:
            raise DataError(
                f"The test image {path} is held out as well ({twin}): a scale chosen on test images would flatter the "
                "figures. Remove one of the two."
            )

"""Accuracy per degree on images, and agreement with the lowest degree where there are no labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.calibration.latency import Progress
from tocom.errors import DataError, RequestError
from tocom.images import class_folders, image_files, preprocess, read_image
from tocom.profile import Accuracy
from tocom.runtime import Runtime

__all__ = ["measure_accuracy", "wilson_interval"]

_Z_95 = 1.959963984540054


def wilson_interval(right: int, count: int, z: float = _Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a share (Wilson 1927), 95 % by default.

    Raises:
        RequestError: ``count`` is not positive, or ``right`` is not in 0…count.
    """
    if count < 1 or not 0 <= right <= count:
        raise RequestError(f"Expected 0 <= right <= count and count >= 1. Got right={right}, count={count}.")
    share = right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At 0 and at all right one end is the share itself; rounding must not push it past.
    low = 0.0 if right == 0 else min(centre - half, share)
    high = 1.0 if right == count else max(centre + half, share)
    return low, high


def measure_accuracy(
    runtime: Runtime,
    samples: Path | str | Iterable[tuple[Any, int | None]],
    *,
    degrees: Sequence[int] | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> dict[int, Accuracy]:
    """Return the accuracy per degree.

    Args:
        runtime: A warm runtime whose bundle gives logits.
        samples: A folder with one subfolder per class (``top1``); a folder of images (``agreement``); or pairs of an
            image (path, PIL image, or [channels, height, width] float32) and its class index, None without labels.
        degrees: Degrees to measure; None takes the resident ones.
        batch: Images per inference; None takes the bundle's optimal batch.
        progress: Called after every batch.

    Returns:
        Per degree: the share of right answers with its 95 % Wilson interval; without labels, the share of answers
        that equal the lowest degree's.

    Raises:
        DataError: No samples, an unreadable image, a label that the model does not have, some labels missing, or a
            bundle without logits.
    """
    if "logits" not in runtime.bundle.output_names:
        raise DataError(
            f"{runtime.bundle.path} gives {', '.join(runtime.bundle.output_names)}, no logits: accuracy needs a "
            "classifier. Export a model with one, or calibrate latency alone (no --images)."
        )
    pairs: list[tuple[Any, int | None]] = (
        _folder_samples(Path(samples), runtime.bundle.labels) if isinstance(samples, (str, Path)) else list(samples)
    )
    if not pairs:
        raise DataError("The 'samples' parameter must hold at least one image. Got none.")
    labelled = sum(label is not None for _, label in pairs)
    if labelled not in (0, len(pairs)):
        raise DataError(f"Either every sample has a label or none has. Got {labelled} labels for {len(pairs)} images.")
    chosen = list(runtime.degrees if degrees is None else degrees)
    size = runtime.bundle.batch[1] if batch is None else batch
    right = dict.fromkeys(chosen, 0)
    for start, images, labels in _grouped(runtime, pairs, size):
        expected: NDArray[Any] | None = np.asarray(labels) if labelled else None
        for degree in chosen:
            logits = runtime.infer(images, degree=degree).outputs["logits"]
            answers = logits.argmax(-1)
            if expected is None:
                expected = answers
            elif labelled and int(expected.max()) >= logits.shape[-1]:
                raise DataError(
                    f"A sample has the class index {int(expected.max())}, the model has {logits.shape[-1]} classes. "
                    "Give the class folders the names of the manifest's labels."
                )
            right[degree] += int((answers == expected).sum())
        if progress is not None:
            progress("accuracy", start + len(images), len(pairs))
    kind = "top1" if labelled else "agreement"
    return {
        degree: Accuracy(kind, hits / len(pairs), len(pairs), *wilson_interval(hits, len(pairs)))
        for degree, hits in right.items()
    }


def _folder_samples(folder: Path, labels: Sequence[str] | None) -> list[tuple[Any, int | None]]:
    if folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir()):
        return list(class_folders(folder, labels))
    return [(path, None) for path in image_files(folder)]


def _grouped(
    runtime: Runtime, pairs: Sequence[tuple[Any, int | None]], size: int
) -> Iterator[tuple[int, NDArray[np.float32], list[int | None]]]:
    """Yield the start, images and labels of each batch; the last one is filled up only as far as the engines need."""
    for start in range(0, len(pairs), size):
        group = pairs[start : start + size]
        yield start, np.stack([_as_input(runtime, image) for image, _ in group]), [label for _, label in group]


def _as_input(runtime: Runtime, image: Any) -> NDArray[np.float32]:
    entry = runtime.bundle.manifest["input"]
    if isinstance(image, np.ndarray):
        return np.asarray(image, np.float32)
    if isinstance(image, (str, Path)):
        return read_image(image, entry)
    return preprocess(image, entry)

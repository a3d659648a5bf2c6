"""Accuracy per degree on images, and agreement with the lowest degree, at the precision of the engines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.calibration.accuracy.intervals import share_of
from tocom.calibration.accuracy.ranking import expected_accuracies
from tocom.errors import DataError
from tocom.formats.profile import Accuracy
from tocom.images import check_labels, class_folders, image_files, preprocess, read_image
from tocom.runtime import Runtime
from tocom.system.progress import Progress, silent

__all__ = ["Answers", "as_input", "collect_answers", "read_samples", "stacked"]

Samples = Path | str | Iterable[tuple[Any, int | None]]
"""A folder with one subfolder per class; a folder of images; or pairs of an image and its class index or None."""


@dataclass(frozen=True)
class Answers:
    """What every degree answered to the same images.

    Attributes:
        by_degree: Class indices [count], ascending by degree.
        labels: Right class indices [count], or None.
    """

    by_degree: Mapping[int, NDArray[np.int64]]
    labels: NDArray[np.int64] | None

    def right(self) -> dict[int, NDArray[np.bool_]]:
        """Return per degree which answers are right; without labels, which equal the lowest degree's."""
        return self.agree() if self.labels is None else {d: a == self.labels for d, a in self.by_degree.items()}

    def agree(self) -> dict[int, NDArray[np.bool_]]:
        """Return per degree which answers equal the lowest degree's."""
        dense = self.by_degree[min(self.by_degree)]
        return {degree: answers == dense for degree, answers in self.by_degree.items()}

    def accuracy(self) -> dict[int, Accuracy]:
        """Return per degree the share of right answers (``top1``), or without labels the agreement.

        Each with its 95 % Wilson interval, and what to rank the degree by: :mod:`tocom.calibration.accuracy.ranking`.
        """
        return _shares("agreement" if self.labels is None else "top1", self.right())

    def agreement(self) -> dict[int, Accuracy]:
        """Return per degree the share of answers that equal the lowest degree's."""
        return _shares("agreement", self.agree())


def collect_answers(
    runtime: Runtime,
    samples: Samples,
    *,
    batch: int | None = None,
    progress: Progress = silent,
) -> Answers:
    """Run every degree on every image.

    Args:
        runtime: A warm runtime whose bundle gives logits.
        samples: A folder with one subfolder per class; a folder of images, without labels; or pairs of an image (path,
            PIL image, or [channels, height, width] float32) and its class index, None without labels.
        batch: Images per inference; None takes the bundle's optimal batch.
        progress: Called after every batch.

    Raises:
        DataError: No samples, an unreadable image, a label that the model does not have, some labels missing, labels
            of one class only, or a bundle without logits.
    """
    if "logits" not in runtime.bundle.output_names:
        raise DataError(
            f"{runtime.bundle.path} gives {', '.join(runtime.bundle.output_names)}, no logits: accuracy needs a "
            "classifier. Export a model with one, or calibrate latency alone (no --images)."
        )
    pairs = read_samples(samples, runtime.bundle.labels, classes=runtime.bundle.classes)
    labels = None if pairs[0][1] is None else np.array([label for _, label in pairs], np.int64)
    chosen = sorted(runtime.degrees)
    size = runtime.bundle.batch[1] if batch is None else batch
    found: dict[int, list[NDArray[np.int64]]] = {degree: [] for degree in chosen}
    for images in stacked(runtime, [image for image, _ in pairs], size, "accuracy", progress):
        for degree in chosen:
            logits = runtime.infer(images, degree=degree).outputs["logits"]
            check_labels(labels, logits.shape[-1])
            found[degree].append(logits.argmax(-1))
    return Answers({degree: np.concatenate(parts) for degree, parts in found.items()}, labels)


def read_samples(
    samples: Samples, labels: Sequence[str] | None, *, classes: int | None = None
) -> list[tuple[Any, int | None]]:
    """Return pairs of an image and its class index, or None where there are no labels.

    Args:
        samples: See :func:`collect_answers`.
        labels: The model's class names.
        classes: How many classes the model has, where known.

    Raises:
        DataError: No samples, a folder that is not a label, labels for some only, or of one class only.
    """
    pairs: list[tuple[Any, int | None]] = (
        _folder_samples(Path(samples), labels, classes) if isinstance(samples, (str, Path)) else list(samples)
    )
    if not pairs:
        raise DataError("The 'samples' parameter must hold at least one image. Got none.")
    known = [label for _, label in pairs if label is not None]
    if len(known) not in (0, len(pairs)):
        raise DataError(
            f"Either every sample has a label or none has. Got {len(known)} labels for {len(pairs)} images."
        )
    if len(known) > 1 and len(set(known)) == 1:
        name = f" ({labels[known[0]]})" if labels is not None and known[0] < len(labels) else ""
        raise DataError(
            f"All {len(known)} images are of one class, {known[0]}{name}: a model that always answers it would be "
            "fully right. Give images of at least two classes, or without labels (a flat folder) for the agreement."
        )
    return pairs


def _shares(kind: str, right: Mapping[int, NDArray[np.bool_]]) -> dict[int, Accuracy]:
    expected = expected_accuracies(right)
    return {degree: share_of(hits, kind, expected[degree]) for degree, hits in right.items()}


def _folder_samples(folder: Path, labels: Sequence[str] | None, classes: int | None) -> list[tuple[Any, int | None]]:
    if folder.is_dir() and any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir()):
        return list(class_folders(folder, labels, classes=classes))
    return [(path, None) for path in image_files(folder)]


def stacked(
    runtime: Runtime, images: Sequence[Any], size: int, stage: str, progress: Progress
) -> Iterator[NDArray[Any]]:
    """Yield images as the model takes them, ``size`` at a time: [batch, channels, height, width]; report each batch."""
    entry = runtime.bundle.manifest["input"]
    for start in range(0, len(images), size):
        batch = np.stack([as_input(image, entry) for image in images[start : start + size]])
        yield batch
        progress(stage, start + len(batch), len(images))


def as_input(image: Any, entry: Mapping[str, Any]) -> NDArray[Any]:
    """Return an image (path, PIL image or array) as a model's input [channels, height, width]."""
    if isinstance(image, np.ndarray):
        if (image.dtype == np.uint8) != (entry["dtype"] == "uint8"):
            raise DataError(
                f"This bundle takes {entry['dtype']} images. Got an array of {image.dtype}. Give files, or arrays as "
                "Runtime.preprocess() makes them."
            )
        return np.asarray(image, entry["dtype"])
    if isinstance(image, (str, Path)):
        return read_image(image, entry)
    return preprocess(image, entry)

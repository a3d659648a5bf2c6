"""What a model answers to each image of a set, and the scores that follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tocom.images import check_labels

__all__ = ["WAYS", "WITHOUT", "Answers", "Scores", "answers_of"]

# The ways of running a degree, and their names in pictures.
WITHOUT = "without"
WAYS = {
    WITHOUT: "compression alone",
    "compensated": "with the compensator",
    "aligned": "with an alignment",
    "both": "with both",
}


@dataclass(frozen=True)
class Scores:
    """How a model does on a set of images.

    Attributes:
        feature_gap: Mean of one minus cosine between the pooled features and those at the source degree.
        accuracy: Share of right answers; None without a classifier.
        log_loss: Mean of the negative logarithm of the right class's probability; None without a classifier.
    """

    feature_gap: float
    accuracy: float | None = None
    log_loss: float | None = None


@dataclass(frozen=True)
class Answers:
    """One entry per image.

    Attributes:
        gap: [images]: one minus cosine between the pooled feature and that at the source degree.
        label: [images]: the right class.
        answer: [images]: the model's class; None without a classifier.
        log_loss: [images]: negative logarithm of the right class's probability; None without a classifier.
    """

    gap: NDArray[np.float64]
    label: NDArray[np.int64]
    answer: NDArray[np.int64] | None = None
    log_loss: NDArray[np.float64] | None = None

    @property
    def error(self) -> NDArray[np.float64]:
        """What a degree must not add to: one for a wrong answer and zero for a right one; without classes the gap."""
        return self.gap if self.answer is None else (self.answer != self.label).astype(np.float64)

    @property
    def loss(self) -> NDArray[np.float64]:
        """What a compensator is to lower: the log-loss; without classes the gap."""
        return self.gap if self.log_loss is None else self.log_loss

    def scores(self) -> Scores:
        """Return the means over the images."""
        if self.answer is None or self.log_loss is None:
            return Scores(float(self.gap.mean()))
        right = int((self.answer == self.label).sum())
        return Scores(float(self.gap.mean()), right / len(self.label), float(self.log_loss.mean()))

    def confusion(self, classes: int) -> list[list[int]]:
        """Return how many images of each class (rows) got each answer (columns); needs a classifier."""
        table = np.zeros((classes, classes), np.int64)
        np.add.at(table, (self.label, self.answer), 1)
        return table.tolist()


def answers_of(features: Tensor, head: nn.Module, dense: Tensor, labels: Tensor) -> Answers:
    """Return the answers that a head gives to pooled features.

    Args:
        features: [images, channels], float32, on the CPU.
        head: The classifier, or an identity where there is none.
        dense: The features of the same images at the source degree.
        labels: [images]: class indices.

    Raises:
        DataError: A label that the head does not have.
    """
    gap = (1 - F.cosine_similarity(features.double(), dense.double(), dim=-1)).numpy()
    if isinstance(head, nn.Identity):
        return Answers(gap, labels.numpy())
    with torch.no_grad():
        logits = head(features.to(next(head.parameters()))).double().cpu()
    check_labels(labels.numpy(), logits.shape[-1])
    losses = F.cross_entropy(logits, labels, reduction="none").numpy()
    return Answers(gap, labels.numpy(), logits.argmax(-1).numpy(), losses)

"""Cells that nothing learned from: features that are kept, and means as if both classes had their share of all cells.

The last of the cells that the quickstart leaves out stand in the order of their class, so that there are more defective
ones among them than among all; every mean is taken by class and weighed by the class's share (post-stratification).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from domains import cell_views, quickstart_cells
from numpy.typing import NDArray
from results_measure import Features, Measured
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import ConcatDataset, Subset

from tocom.compression.loading.preprocessing import input_config

CELLS, CHUNK = 1000, 200


def mean_interval(values: NDArray[Any]) -> list[float]:
    """Return a mean and its 95 % interval (normal: for hundreds of values)."""
    mean, error = float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
    return [mean, mean - 1.96 * error, mean + 1.96 * error]


class Classes:
    """Means over cells as if each class had the share that it has of all cells.

    Args:
        labels: Of the cells, [cells].
        shares: Per class.
    """

    def __init__(self, labels: np.ndarray, shares: Sequence[float]) -> None:
        self.labels, self.shares = labels, shares
        self._parts = [(share, labels == label) for label, share in enumerate(shares)]

    def interval(self, values: np.ndarray) -> list[float]:
        """Return the mean and its 95 % interval (normal: there are hundreds of each class)."""
        mean = sum(share * values[part].mean() for share, part in self._parts)
        error = sum(share**2 * values[part].var(ddof=1) / part.sum() for share, part in self._parts) ** 0.5
        return [float(mean), float(mean - 1.96 * error), float(mean + 1.96 * error)]

    def mean(self, values: np.ndarray) -> float:
        """Return the mean."""
        return self.interval(values)[0]

    def scored(
        self, drawn: Sequence[dict[str, np.ndarray]], others: dict[str, dict[str, np.ndarray]]
    ) -> dict[str, Any]:
        """Return the scores of every draw, and the paired differences of their mean to other ways, with intervals."""
        means = {score: np.mean([each[score] for each in drawn], axis=0) for score in drawn[0]}
        return {
            **{score: [self.mean(each[score]) for each in drawn] for score in means},
            "to": {
                name: {score: self.interval(means[score] - other[score]) for score in means}
                for name, other in others.items()
            },
        }


class Unseen:
    """Features of cells that neither head, nor compensator, nor alignment learns from, kept 200 at a time.

    Attributes:
        chosen: The cells.
        classes: Their labels, and means by class.
    """

    def __init__(self, model: VisionTransformer, cells: int) -> None:
        entry = input_config(model)
        rest, test, split = cell_views("rest", entry), cell_views("test", entry), quickstart_cells()
        first = len(rest) - (CELLS - len(test))
        images = ConcatDataset([test, Subset(rest, range(first, len(rest)))])
        self.chosen = [*split.test, *split.rest[first:]][:cells]
        labels = np.array([cell.label for cell in self.chosen])
        defective = float(np.mean([cell.label for part in vars(split).values() for cell in part]))
        self.classes = Classes(labels, (1 - defective, defective))
        starts = range(0, cells, CHUNK)
        self.model, self.cells = model, cells
        self.parts = [
            Measured(f"unseen-{start}", model, Subset(images, range(start, min(start + CHUNK, cells))))
            for start in starts
        ]

    def at(self, *arguments: Any, **options: Any) -> Features:
        """Return features [cells, channels]: see :meth:`results_measure.Measured.at`."""
        return np.concatenate([part.at(*arguments, **options) for part in self.parts])

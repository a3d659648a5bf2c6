"""A picture of an evaluation: what each target degree costs, with intervals, a row of panels per source degree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.evaluation.answers import Answers
from tocom.evaluation.pairs import Evaluation
from tocom.system.drawing import picture

__all__ = ["draw"]

_Z_95 = 1.96
_SERIES = {
    "without": ("compression alone", "#d9822b"),
    "compensated": ("with the compensator", "#3b8fc4"),
    "aligned": ("with an alignment", "#4f9d5d"),
    "both": ("with both", "#7a5195"),
}
_APART = 0.18  # of the distance between two degrees, between two ways


def draw(evaluation: Evaluation, path: Path) -> None:
    """Write one PNG: the errors that each target degree adds to the source degree's, and its feature gap.

    Intervals are of the paired differences over the test images, 95 %.

    Args:
        evaluation: The evaluation.
        path: The file.

    Raises:
        RequestError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    sources = list(dict.fromkeys(pair.source for pair in evaluation.pairs))
    # Errors are compared with the source degree's, where that is among the targets.
    dense = {source: evaluation.answers.get((source, source, "without")) for source in sources}
    compared = [source for source, each in dense.items() if each is not None and each.answer is not None]
    columns = 2 if compared else 1
    with picture(path, 4.6 * columns + 0.4, 3.2 * len(sources) + 0.4) as figure:
        grid = figure.subplots(len(sources), columns, squeeze=False)
        for row, source in zip(grid, sources, strict=True):
            known = {key[1:]: each for key, each in evaluation.answers.items() if key[0] == source != key[1]}
            gaps = {key: 1000 * each.gap for key, each in known.items()}
            _panel(row[-1], gaps, f"feature gap · 1000, source {source}")
            if source in compared:
                lost = {key: _points(each, dense[source]) for key, each in known.items()}
                row[0].axhline(100 * evaluation.allowed, color="#b03a2e", lw=1, ls="--", label="allowed")
                _panel(row[0], lost, f"accuracy lost, points, source {source}")
        count = evaluation.images["test"]
        title = f"{evaluation.provenance['model']}, {evaluation.method}, scale {evaluation.scale}"
        figure.suptitle(f"{title}: {count} test images, 95 % intervals", fontsize=10)


def _points(answers: Answers, dense: Answers | None) -> NDArray[np.float64]:
    return 100 * (answers.error - (0 if dense is None else dense.error))


def _panel(axes: Any, values: dict[tuple[int, str], NDArray[np.float64]], label: str) -> None:
    """Draw the mean of the values [images] of each target degree and way, with its interval."""
    targets = list(dict.fromkeys(target for target, _ in values))
    ways = [way for way in _SERIES if any(way == measured for _, measured in values)]
    for index, way in enumerate(ways):
        name, colour = _SERIES[way]
        known = [target for target in targets if (target, way) in values]
        means = [float(values[target, way].mean()) for target in known]
        halves = [_half_interval(values[target, way]) for target in known]
        positions = [targets.index(target) + _APART * (index - (len(ways) - 1) / 2) for target in known]
        axes.errorbar(positions, means, yerr=halves, fmt="o", color=colour, capsize=3, label=name)
    axes.axhline(0, color="#8a8a8a", lw=1)
    axes.set_xticks(range(len(targets)), [str(target) for target in targets])
    axes.set(xlabel="target degree", ylabel=label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    if ways:
        axes.legend(fontsize=8)


def _half_interval(values: NDArray[np.float64]) -> float:
    return _Z_95 * float(values.std()) / max(len(values) - 1, 1) ** 0.5

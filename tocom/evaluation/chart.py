"""A picture of an evaluation with one source degree: what each target degree costs, with intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tocom.evaluation.pairs import Evaluation
from tocom.system.drawing import picture

__all__ = ["draw_chart"]

_Z_95 = 1.96
_SERIES = {
    "without": ("compression alone", "#d9822b"),
    "compensated": ("with the compensator", "#3b8fc4"),
    "aligned": ("with an alignment", "#4f9d5d"),
    "both": ("with both", "#7a5195"),
}
_APART = 0.18  # of the distance between two degrees, between two ways


def draw_chart(evaluation: Evaluation, path: Path) -> None:
    """Write one PNG: the errors that each target degree adds to the source degree's, and its feature gap.

    Intervals are of the paired differences over the test images, 95 %.

    Args:
        evaluation: With one source degree.
        path: The file.

    Raises:
        RequestError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    source = evaluation.pairs[0].source
    targets = [pair.target for pair in evaluation.pairs if pair.target != source]
    has_classes = evaluation.pairs[0].without.accuracy is not None
    panels = [("feature gap · 1000", lambda answers, _: 1000 * answers.gap)]
    if has_classes:
        panels.insert(0, ("accuracy lost, points", lambda answers, dense: 100 * (answers.error - dense.error)))
    dense = next((each for (_, target, _), each in evaluation.answers.items() if target == source), None)
    if dense is None:  # without the source degree among the targets there is nothing to compare errors with
        panels = panels[-1:]
    with picture(path, 4.6 * len(panels) + 0.4, 3.6) as figure:
        for index, (label, differences) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), index + 1)
            axes.axhline(0, color="#8a8a8a", lw=1)
            if label.startswith("accuracy"):
                axes.axhline(100 * evaluation.allowed, color="#b03a2e", lw=1, ls="--", label="allowed")
            measured = [
                way for way in _SERIES if any((source, target, way) in evaluation.answers for target in targets)
            ]
            for index, way in enumerate(measured):
                name, colour = _SERIES[way]
                shift = _APART * (index - (len(measured) - 1) / 2)
                known = [target for target in targets if (source, target, way) in evaluation.answers]
                values = [differences(evaluation.answers[source, target, way], dense) for target in known]
                means = [float(each.mean()) for each in values]
                halves = [
                    _Z_95 * float(each.std(ddof=1)) / np.sqrt(len(each)) if len(each) > 1 else 0.0 for each in values
                ]
                positions = [targets.index(target) + shift for target in known]
                axes.errorbar(positions, means, yerr=halves, fmt="o", color=colour, capsize=3, label=name)
            axes.set(xlabel="target degree", ylabel=label, xticks=range(len(targets)))
            axes.set_xticklabels([str(target) for target in targets])
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", alpha=0.25)
            axes.legend(fontsize=8)
        count = evaluation.images["test"]
        title = (
            f"{evaluation.provenance['model']}, {evaluation.method}, scale {evaluation.scale}: against degree {source}"
        )
        figure.suptitle(f"{title}, {count} test images, 95 % intervals", fontsize=10)

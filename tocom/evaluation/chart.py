"""A picture of an evaluation with one source degree: what each target degree costs, with intervals."""

from __future__ import annotations

from pathlib import Path

from tocom.evaluation.answers import WAYS, WITHOUT
from tocom.evaluation.pairs import Evaluation
from tocom.system.drawing import picture

__all__ = ["draw_chart"]

_Z_95 = 1.96
_COLOURS = dict(zip(WAYS, ("#d9822b", "#3b8fc4", "#4f9d5d", "#7a5195"), strict=True))
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
    known = {(way, target): each for (_, target, way), each in evaluation.answers.items() if target != source}
    targets = list(dict.fromkeys(target for _, target in known))
    # Without the source degree among the targets there is nothing to compare errors with.
    dense = evaluation.answers.get((source, source, WITHOUT))
    panels = {"feature gap · 1000": {key: 1000 * each.gap for key, each in known.items()}}
    if dense is not None and dense.answer is not None:
        lost = {key: 100 * (each.error - dense.error) for key, each in known.items()}
        panels = {"accuracy lost, points": lost, **panels}
    with picture(path, 4.6 * len(panels) + 0.4, 3.6) as figure:
        for number, (label, values) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), number + 1)
            axes.axhline(0, color="#8a8a8a", lw=1)
            if label.startswith("accuracy"):
                axes.axhline(100 * evaluation.allowed, color="#b03a2e", lw=1, ls="--", label="allowed")
            ways = [way for way in WAYS if any(way == measured for measured, _ in known)]
            for index, way in enumerate(ways):
                own = {target: each for (measured, target), each in values.items() if measured == way}
                halves = [_Z_95 * each.std() / max(len(each) - 1, 1) ** 0.5 for each in own.values()]
                positions = [targets.index(target) + _APART * (index - (len(ways) - 1) / 2) for target in own]
                means, style = [each.mean() for each in own.values()], {"color": _COLOURS[way], "label": WAYS[way]}
                axes.errorbar(positions, means, yerr=halves, fmt="o", capsize=3, **style)
            axes.set_xticks(range(len(targets)), [str(target) for target in targets])
            axes.set(xlabel="target degree", ylabel=label)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", alpha=0.25)
            axes.legend(fontsize=8)
        count = evaluation.images["test"]
        title = (
            f"{evaluation.provenance['model']}, {evaluation.method}, scale {evaluation.scale}: against degree {source}"
        )
        figure.suptitle(f"{title}, {count} test images, 95 % intervals", fontsize=10)

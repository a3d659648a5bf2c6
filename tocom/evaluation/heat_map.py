"""A picture of an evaluation: one square per (source, target) pair."""

from __future__ import annotations

from pathlib import Path

from tocom.evaluation.answers import WAYS, Scores
from tocom.evaluation.pairs import Evaluation, Pair
from tocom.system.drawing import picture

__all__ = ["draw"]

_BEHIND = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}


def draw(evaluation: Evaluation, path: Path) -> None:
    """Write heat maps as PNG: one of every way that was measured, and the gain of the way that the verdicts choose.

    Without verdicts the gain is the compensator's.

    Args:
        evaluation: Of a model with a classifier: accuracy in percent. Without one: the feature gap, times 1000.
        path: The file.

    Raises:
        RequestError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    has_accuracy = evaluation.pairs[0].without.accuracy is not None

    def value(scores: Scores) -> float:
        return 100 * scores.accuracy if scores.accuracy is not None else 1000 * scores.feature_gap

    sources = list(dict.fromkeys(pair.source for pair in evaluation.pairs))
    targets = list(dict.fromkeys(pair.target for pair in evaluation.pairs))
    of = {(pair.source, pair.target): pair for pair in evaluation.pairs}
    grid = [[of[source, target] for target in targets] for source in sources]
    ways = [way for way in WAYS if any(getattr(pair, way) is not None for pair in evaluation.pairs)]
    shown = {way: [[value(getattr(pair, way) or pair.without) for pair in row] for row in grid] for way in ways}
    sign = 1 if has_accuracy else -1
    gain = [[sign * (value(_chosen(pair)) - value(pair.without)) for pair in row] for row in grid]

    with picture(path, (1 + 0.8 * len(targets)) * (1 + len(ways)), 1.6 + 0.6 * len(sources)) as figure:
        everything = [number for values in shown.values() for row in values for number in row]
        widest = max(max(abs(number) for row in gain for number in row), 1e-9)
        what = "accuracy, %" if has_accuracy else "feature gap · 1000"
        panels = [(WAYS[way], shown[way], "viridis", (min(everything), max(everything))) for way in ways]
        panels.append(("gain", gain, "RdBu", (-widest, widest)))
        for index, (title, values, colours, (least, most)) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), index + 1)
            axes.imshow(values, cmap=colours, vmin=least, vmax=most, aspect="auto")
            axes.set_xticks(range(len(targets)), [str(target) for target in targets])
            axes.set_yticks(range(len(sources)), [str(source) for source in sources])
            axes.set(title=title, xlabel="target degree")
            if index == 0:
                axes.set_ylabel("source degree")
            for y, row in enumerate(values):
                for x, number in enumerate(row):
                    text = f"{number:+.2f}" if title == "gain" else f"{number:.2f}"
                    axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=_BEHIND)
        count = evaluation.images["test"]
        figure.suptitle(f"{what}, {count} test images, {evaluation.method}, scale {evaluation.scale}", fontsize=10)


def _chosen(pair: Pair) -> Scores:
    """Return the scores of the way that the verdict chooses; without one the compensator's, where there is one."""
    scores = pair.compensated if pair.verdict is None else getattr(pair, pair.verdict.way)
    return scores or pair.without

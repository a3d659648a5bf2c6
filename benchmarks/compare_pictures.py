"""The pictures of docs/benchmarks.md as SVG; each carries the sha256 of the figures that it was drawn from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from measuring import median_interval

COLOURS = {
    "tocom": "#0b6e99",
    "torch": "#c2571a",
    "torch-compiled": "#e0a458",
    "onnxruntime": "#444444",
    "openvino": "#3f7d3a",
    "tocom-openvino": "#5fa8c4",
    "smaller": "#8a4fa3",
}
WAYS = {"merge with compensator": "#0b6e99", "merge": "#c2571a", "prune": "#8a4fa3", "smaller image": "#444444"}


def digest(content: Any) -> str:
    """Return the sha256 of JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _figure(columns: int) -> Any:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Equal figures give equal files.
    matplotlib.rcParams["svg.hashsalt"] = "tocom"
    figure = Figure(figsize=(4.2 * columns, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _save(figure: Any, path: Path, content: Any) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None, "Description": f"drawn from {digest(content)}"})


def draw_speed(compare: dict[str, Any], folder: Path) -> None:
    """Draw images per second over the degree, one picture per batch."""
    for batch in sorted({group["batch"] for group in compare["groups"]}):
        groups = [group for group in compare["groups"] if group["batch"] == batch]
        figure = _figure(len(groups))
        for number, group in enumerate(groups):
            axes = figure.add_subplot(1, len(groups), number + 1)
            for system, colour in COLOURS.items():
                rows = sorted(
                    (row for row in group["rows"] if row["system"] == system and "samples_ms" in row),
                    key=lambda row: row["degree"],
                )
                if not rows:
                    continue
                speeds = [[1e3 * batch / ms for ms in median_interval(row["samples_ms"])] for row in rows]
                if len(rows) == 1:  # no degrees: a level to compare with
                    axes.axhline(speeds[0][0], color=colour, lw=1, ls="--", label=system)
                    continue
                spread = [[s[0] - s[2] for s in speeds], [s[1] - s[0] for s in speeds]]
                degrees = [row["degree"] for row in rows]
                axes.errorbar(degrees, [s[0] for s in speeds], yerr=spread, fmt="o-", ms=3, color=colour, label=system)
            axes.set(xlabel="degree", ylabel="images/s", title=f"{group['model']}, batch {batch}", ylim=(0, None))
            axes.grid(alpha=0.25)
            axes.legend(fontsize=7)
        _save(figure, folder / f"benchmark-batch-{batch}.svg", compare)


def _change(row: dict[str, Any]) -> dict[str, float]:
    return row["difference_to_dense"]


def _recall(row: dict[str, Any]) -> dict[str, float]:
    return row["search"]["recall_1"]


def draw_accuracy(cost: dict[str, Any], folder: Path) -> None:
    """Draw the change of accuracy and the recall over GMACs, one line per way."""
    figure = _figure(2)
    panels = (
        (_change, "change of accuracy, points", f"Nothing re-tuned, {cost['cells']:,} cells"),
        (_recall, "recall at 1, %", f"{cost['queries']} cells photographed again, searched"),
    )
    for number, (figure_of, label, title) in enumerate(panels):
        axes = figure.add_subplot(1, 2, number + 1)
        for shift, (kind, colour) in enumerate(WAYS.items()):
            rows = sorted((row for row in cost["rows"] if row["kind"] in (kind, "dense")), key=lambda row: row["macs"])
            found = [figure_of(row) for row in rows]
            axes.errorbar(
                [row["macs"] / 1e9 + 0.03 * shift for row in rows],
                [100 * each["value"] for each in found],
                yerr=[[100 * abs(each["value"] - each[end]) for each in found] for end in ("low", "high")],
                fmt="o-",
                ms=3,
                lw=1.2,
                elinewidth=0.6,
                capsize=2,
                color=colour,
                label=kind,
            )
        axes.set(xlabel="GMACs", ylabel=label, title=title)
        axes.grid(alpha=0.25)
    figure.axes[0].legend(fontsize=8, loc="lower right")
    _save(figure, folder / "accuracy-against-cost.svg", cost)

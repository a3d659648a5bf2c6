"""The quickstart's picture: accuracy over latency, and the stream of budget, latency and degree over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tocom.system.drawing import picture

__all__ = ["draw"]

_WITH, _WITHOUT, _BUDGET, _DEGREE = "#0b6e99", "#c2571a", "#222222", "#8a4fa3"


def draw(figures: dict[str, Any], path: Path) -> None:
    """Write the picture as PNG.

    Args:
        figures: Content of ``figures.json``.
        path: The file.
    """
    with picture(path, 12, 7.5) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.1))
        _accuracy(figure.add_subplot(grid[0, 0]), figures)
        _gap(figure.add_subplot(grid[0, 1]), figures)
        _stream(figure.add_subplot(grid[1, :]), figures)
        machine = figures["machine"]
        figure.suptitle(f"ViT-S/14 on solar cells, {machine['cores']} cores of {machine['processor']}", fontsize=12)


def _accuracy(axes: Any, figures: dict[str, Any]) -> None:
    for key, colour, label, shift in (
        ("accuracy", _WITH, "with compensator", 0.0),
        ("accuracy_without_compensator", _WITHOUT, "without", 0.25),
    ):
        x = [row["p50_ms"] + shift for row in figures["degrees"]]
        y = [100 * row[key]["value"] for row in figures["degrees"]]
        low = [100 * (row[key]["value"] - row[key]["low"]) for row in figures["degrees"]]
        high = [100 * (row[key]["high"] - row[key]["value"]) for row in figures["degrees"]]
        axes.errorbar(x, y, yerr=(low, high), fmt="o-", color=colour, capsize=3, lw=1.2, elinewidth=0.6, label=label)
    for row in figures["degrees"]:
        axes.annotate(
            f"r={row['degree']}",
            (row["p50_ms"], 100 * row["accuracy"]["value"]),
            textcoords="offset points",
            xytext=(4, 6),
            fontsize=8,
        )
    axes.set(
        xlabel="latency, median ms (batch 1)",
        ylabel="accuracy %",
        title=f"Accuracy over latency ({figures['cells']['test']} test cells, 95 % intervals)",
    )
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(alpha=0.25)


def _gap(axes: Any, figures: dict[str, Any]) -> None:
    rows = [row for row in figures["degrees"] if row["feature_gap"]]
    places = range(len(rows))
    for key, colour, label, shift in (
        ("without_compensator", _WITHOUT, "without", -0.2),
        ("with_compensator", _WITH, "with compensator", 0.2),
    ):
        axes.bar(
            [p + shift for p in places], [row["feature_gap"][key] for row in rows], 0.38, color=colour, label=label
        )
    axes.set_xticks(list(places), [str(row["degree"]) for row in rows])
    axes.set(xlabel="degree", ylabel="1 − cosine to the dense feature", title="Feature gap on test cells")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25, axis="y")


def _stream(axes: Any, figures: dict[str, Any]) -> None:
    requests = figures["requests"]
    index = range(len(requests))
    missed = [i for i in index if not requests[i]["met"]]
    axes.step(index, [r["budget_ms"] for r in requests], where="mid", color=_BUDGET, lw=1.4, label="budget")
    axes.plot(index, [r["latency_ms"] for r in requests], ".", color=_WITH, ms=4, label="latency")
    axes.plot(missed, [requests[i]["latency_ms"] for i in missed], "x", color="#c00000", ms=6, label="missed")
    axes.set(xlabel="request", ylabel="ms", title="The runtime under a stepping budget", ylim=(0, None))
    twin = axes.twinx()
    twin.step(index, [r["degree"] for r in requests], where="mid", color=_DEGREE, lw=1.0, alpha=0.7)
    twin.set_ylabel("degree taken", color=_DEGREE)
    twin.set_yticks([row["degree"] for row in figures["degrees"]])
    axes.legend(loc="upper center", ncols=3, fontsize=8)
    axes.grid(alpha=0.25)

"""The quickstart's picture: search and accuracy over latency, and the stream under a stepping budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tocom.system.drawing import picture

__all__ = ["draw"]

_WITH, _WITHOUT, _BUDGET, _DEGREE = "#0b6e99", "#c2571a", "#222222", "#8a4fa3"


def draw(figures: dict[str, Any], path: Path) -> None:
    """Write the picture as PNG.

    Args:
        figures: Content of ``figures.json``.
        path: The file.
    """
    cells, gallery, machine = figures["cells"]["test"], figures["gallery"], figures["machine"]
    with picture(path, 12, 8) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=(1.2, 1))
        found = f"The same cell found again, % ({cells} queries)", f"Search in {gallery} features of the dense model"
        right = f"Accuracy, % ({cells} cells)", "Classification, the dense model's head"
        _over_latency(figure.add_subplot(grid[0, 0]), figures, "found", *found)
        _over_latency(figure.add_subplot(grid[0, 1]), figures, "accuracy", *right)
        _stream(figure.add_subplot(grid[1, :]), figures)
        figure.suptitle(
            f"One ViT-S/14, nothing re-tuned; {machine['cores']} cores of {machine['processor']}; 95 % intervals",
            fontsize=12,
        )


def _over_latency(axes: Any, figures: dict[str, Any], key: str, label: str, title: str) -> None:
    x = [row["p50_ms"] for row in figures["degrees"]]
    style: dict[str, Any] = {"fmt": "o-", "capsize": 3, "lw": 1.4, "elinewidth": 0.8}
    for name, colour, way, shift in (
        (key, _WITH, "with compensator", 0.0),
        (f"{key}_without_compensator", _WITHOUT, "merging alone", 0.2),
    ):
        y, low, high = (
            100 * np.array([row[name][end] for row in figures["degrees"]]) for end in ("value", "low", "high")
        )
        axes.errorbar([each + shift for each in x], y, yerr=(y - low, high - y), color=colour, label=way, **style)
    for row, at in zip(figures["degrees"], x, strict=True):
        axes.annotate(
            f"r={row['degree']}",
            (at, 100 * row[key]["value"]),
            textcoords="offset points",
            xytext=(0, 9),
            ha="right",
            fontsize=8,
        )
    axes.set(xlabel="latency, median ms (batch 1)", ylabel=label, title=title)
    axes.margins(x=0.08, y=0.1)
    axes.legend(loc="lower right", fontsize=9)
    axes.grid(alpha=0.25)


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

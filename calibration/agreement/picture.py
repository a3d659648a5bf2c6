"""A picture of an agreement: per backend and degree, how much of the allowed difference is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tocom.calibration.agreement.check import BackendAgreement
from tocom.system.drawing import picture

__all__ = ["draw_agreement"]

# Told apart by the colour-blind (Okabe and Ito), and by their shape.
_STYLES = (("#3b8fc4", "o"), ("#d9822b", "s"), ("#2a9d78", "^"), ("#c06c9f", "D"), ("#8a8a8a", "v"))
# What is not finite stands at the upper edge; a cosine ends at -1.
_LEAST, _MOST = 1e-7, (1e3, 2.0)


def draw_agreement(found: Sequence[BackendAgreement], title: str, path: Path) -> None:
    """Write a PNG: the largest difference as a share of what is allowed, and one minus the cosine, over the degree.

    Args:
        found: What :func:`tocom.calibration.agreement.check.check` returned.
        title: Title of the picture.
        path: The file.

    Raises:
        RequestError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    with picture(path, 9.5, 4.2) as figure:
        used = [each for each in found if each.degrees]
        degrees = sorted({row.degree for each in used for row in each.degrees})
        panels = ("largest difference / allowed", "1 − smallest cosine")
        for panel, label in enumerate(panels):
            axes = figure.add_subplot(1, 2, panel + 1)
            for number, each in enumerate(used):
                colour, marker = _STYLES[number % len(_STYLES)]
                shift = 0.25 * (number - (len(used) - 1) / 2)
                for row in each.degrees:
                    x, y = degrees.index(row.degree) + shift, _value(row, panel)
                    axes.plot(
                        x, y, marker, color=colour, markersize=8, markerfacecolor=colour if row.is_right else "none"
                    )
                axes.plot([], [], marker, color=colour, label=f"{each.name} {each.version}")
            axes.plot(
                [], [], "o", color="black", markerfacecolor="none", label="hollow: wrong; at the upper edge: not finite"
            )
            axes.set(yscale="log", xlabel="degree", ylabel=label, ylim=(_LEAST / 3, _MOST[panel] * 3))
            axes.set_xticks(range(len(degrees)), [str(degree) for degree in degrees])
            axes.margins(x=0.2)
            axes.grid(visible=True, axis="y", alpha=0.3)
            if panel == 0:
                axes.axhline(1, color="#b03030", linewidth=1)
                axes.annotate("allowed", (0, 1), xycoords=("axes fraction", "data"), xytext=(4, 3),
                              textcoords="offset points", color="#b03030", fontsize=8)  # fmt: skip
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=max(len(labels), 1), frameon=False)
        figure.suptitle(title)


def _value(row: object, panel: int) -> float:
    agreement = getattr(row, "agreement", None)
    if agreement is None or not np.isfinite(agreement.difference):
        return _MOST[panel]
    value = agreement.difference / agreement.allowed if panel == 0 else 1 - agreement.cosine
    return float(np.clip(value, _LEAST, _MOST[panel]))

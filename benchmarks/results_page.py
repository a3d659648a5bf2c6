"""Write ``docs/results.md`` and its picture from ``benchmarks/results/compensator.json``.

python benchmarks/results_page.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domains import TRAINING_PICTURES, TRAINING_VIEWS
from results_measure import RESULT

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "results.md", ROOT / "docs" / "images" / "results-transfer.svg"
RECIPES = {"cells": "cells alone", "mix": "the mix"}
PLAIN = {"cells": "cells", "cells-plain": "cells, plain", "mix": "mix", "mix-plain": "mix, plain"}
KINDS = {"probe": "Linear probe", "fine-tune": "Whole fine-tune"}
# Of every score: its heading, digits, and whether more is better.
SCORES = {
    "accuracy": ("accuracy", 3, True),
    "auroc": ("AUROC", 4, True),
    "log_loss": ("log-loss", 4, False),
    "feature_gap": ("feature gap", 5, False),
}


def fixed(value: float, digits: int) -> str:
    """Return the value with so many digits, and zero without a sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def spread(values: Sequence[float], digits: int) -> str:
    """Return the mean, and half the range where there is more than one value."""
    mean = fixed(statistics.mean(values), digits)
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.{digits}f}"


def percent(values: Sequence[float]) -> str:
    return spread([100 * value for value in values], 0) + " %"


def transfer_table(result: dict[str, Any]) -> list[str]:
    lines = [
        "| images | way | gap | "
        + " | ".join(f"closed by {name}" for name in RECIPES.values())
        + " | nearer with the mix |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for domain, recipes in result["transfer"].items():
        for place, row in enumerate(recipes["mix"]):
            closed = " | ".join(percent(recipes[name][place]["closed"]) for name in RECIPES)
            way = f"{row['source']} → {row['target']}"
            lines.append(f"| {domain} | {way} | {row['gap']:.5f} | {closed} | {percent(row['nearer'])} |")
    return lines


def loss_table(result: dict[str, Any]) -> list[str]:
    """Return what the relative loss and the plain mean close, with the one seed that both were trained with."""
    lines = ["| images | way | " + " | ".join(PLAIN.values()) + " |", "| --- | --- |" + " --- |" * len(PLAIN)]
    for domain, recipes in result["transfer"].items():
        for place, row in enumerate(recipes["mix"]):
            closed = " | ".join(percent(recipes[name][place]["closed"][:1]) for name in PLAIN)
            lines.append(f"| {domain} | {row['source']} → {row['target']} | {closed} |")
    return lines


def cells_table(part: dict[str, Any]) -> list[str]:
    title = f"### {KINDS[part['kind']]} at degree {part['source']}, {part['method']}"
    heads = [f"{name} {word}" for name, *_ in SCORES.values() for word in ("without", "with")]
    if part["rows"] is None:
        return [title, "Not measured yet."]
    lines = [title, "| degree | use it | " + " | ".join(heads) + " |", "| --- | --- |" + " --- |" * len(heads)]
    for row in part["rows"]:
        cells = ["–" if "use" not in row else "yes" if row["use"] else "no"]
        for score, (_, digits, _) in SCORES.items():
            cells.append(fixed(row["without"][score], digits))
            cells.append(spread([each[score] for each in row["compensated"]], digits) if "compensated" in row else "–")
        lines.append(f"| {row['target']} | " + " | ".join(cells) + " |")
    return lines


def worse(result: dict[str, Any]) -> list[str]:
    """Return where a compensator that is to be used is, in the mean, worse by more than the range of its seeds."""
    found = []
    for part in result["cells"]:
        for row in part["rows"] or []:
            for score, (name, digits, more) in SCORES.items():
                values = [each[score] for each in row.get("compensated", [])]
                if not row.get("use"):
                    continue
                loss = (row["without"][score] - statistics.mean(values)) * (1 if more else -1)
                if loss > max(values) - min(values):
                    where = (
                        f"{KINDS[part['kind']].lower()} at {part['source']}, {part['method']}, degree {row['target']}"
                    )
                    found.append(f"{where}: {name} worse by {loss:.{digits}f}")
    return found


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the share of the gap closed over the degree, per kind of images and recipe."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tocom"  # the same names inside the file every time
    from matplotlib import pyplot

    figure, places = pyplot.subplots(1, len(result["transfer"]), figsize=(9, 2.8), sharey=True, layout="constrained")
    for axes, (domain, recipes) in zip(places, result["transfer"].items(), strict=True):
        for name, colour in zip(RECIPES, ("#888888", "#2a7de1"), strict=True):
            rows = [row for row in recipes[name] if row["source"] == 0]
            degrees = [row["target"] for row in rows]
            axes.plot(
                degrees, [100 * statistics.mean(row["closed"]) for row in rows], "o-", color=colour, label=RECIPES[name]
            )
            axes.fill_between(
                degrees, *([100 * pick(row["closed"]) for row in rows] for pick in (min, max)), color=colour, alpha=0.2
            )
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set(title=f"tested on {domain}", xlabel="degree", xticks=degrees)
        axes.set_ylim(-60, 100)
    places[0].set_ylabel("feature gap closed, %")
    places[0].legend(title="trained on", fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _head(counts: str, machine: dict[str, Any]) -> list[str]:
    return [
        "# Results",
        "What a compensator is worth, and on which images. Made by `benchmarks/results_train.py`, "
        "`benchmarks/results_measure.py` and `benchmarks/results_page.py`; the last of them writes this page.",
        "",
        f"Backbone: the quickstart's ViT-S/14 (257 tokens, pretrained, frozen). Test images: {counts}; none was "
        "trained on or chosen by. Photographs are crops of four pictures that training has not seen. ± is half the "
        f"range over the seeds of the compensator. Machine: {machine['cores']} cores of {machine['processor']}, "
        f"{machine['measured']}.",
        "",
        "## Which images it helps",
        "A compensator learns how *its* images lose tokens, so it is measured on images of its own kind and of others. "
        "*Closed*: share of the feature gap to the model at the source degree; below zero it does harm. *Nearer*: "
        "images whose features are nearer to it with the compensator.",
        "",
        "![Share of the feature gap closed over the degree](images/results-transfer.svg)",
        "",
    ]


_LOSS = [
    "## What the relative loss does",
    "`relative=True` minimises the mean logarithm of the images' losses. The plain mean is that of the few images with "
    "the largest gaps: of a mix it learns the kind whose gaps are large. One seed of each; share of the gap closed. "
    "Both had as many steps.",
    "",
]
_CELLS = [
    "## On the cells, fitted at one degree and run at another",
    "The task: is a solar cell defective? *Without*: the model as it was fitted, at another degree. *With*: the same, "
    "compensated. The compensators were trained on the pretrained backbone; the whole fine-tunes (one epoch, all "
    "weights, from the probe's head) have never seen them. A compensator brings the features back to those of the "
    "degree that the model was fitted at. For a model of degree 0 that is a gain; from one of degree 16 that runs at a "
    "lower degree it also takes what more tokens give for nothing. *Use it*: whether 120 held-out cells have a lower "
    "log-loss with it, in the mean over the seeds; that is known before any test.",
    "",
]


def page(result: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} of {domain}" for domain, count in result["images"].items())
    bad = worse(result)
    lines = [
        *_head(counts, result["machine"]),
        *transfer_table(result),
        "",
        f"The mix: {TRAINING_VIEWS} whole cells, {TRAINING_VIEWS} random squares of {len(TRAINING_PICTURES)} "
        f"photographs (0.3 to 1 of the shorter side), {TRAINING_VIEWS} digits; half of them mirrored. Training:",
        "",
        *(
            f"- `{name}`, {len(recipe['seeds'])} seed{'s' * (len(recipe['seeds']) > 1)}: {recipe['training']}"
            for name, recipe in result["recipes"].items()
        ),
        "",
        *_LOSS,
        *loss_table(result),
        "",
        *_CELLS,
    ]
    for part in result["cells"]:
        lines += [*cells_table(part), ""]
    lines += [
        "### Where it is worse",
        *(
            [
                "Where it is to be used, and is worse than without by more than the range of the seeds:",
                "",
                *(f"- {each}" for each in bad),
            ]
            if bad
            else ["Nowhere by more than the range of the seeds."]
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    draw(result, PICTURE)
    PAGE.write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Write ``docs/results.md`` and its picture from ``compensator.json`` and ``gpu-training-….json`` of ``results/``.

python benchmarks/results_page.py
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domains import DOMAINS, OTHER_VIEWS, TRAINING_PICTURES, TRAINING_VIEWS
from measuring import RESULTS
from results_measure import RESULT
from results_train import RECIPES as TRAINED

from tocom.quickstart.cells import HELD_OUT
from tocom.training.config import TrainingConfig

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "results.md", ROOT / "docs" / "images" / "results-transfer.svg"
RECIPES = {"cells": "cells alone", "mix": "the mix"}
PLAIN = {"cells-700": "cells", "cells-plain": "cells, plain", "mix-700": "mix", "mix-plain": "mix, plain"}
MORE = ("cells-700", "cells-rank2", "cells")
MIXES = ("mix-700", "mix")
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
        for index, row in enumerate(recipes["mix"]):
            closed = " | ".join(percent(recipes[name][index]["closed"]) for name in RECIPES)
            way = f"{row['source']} → {row['target']}"
            lines.append(f"| {domain} | {way} | {row['gap']:.5f} | {closed} | {percent(row['nearer'])} |")
    return lines


def comparison(
    result: dict[str, Any], columns: dict[str, str], domains: Sequence[str], seeds: int | None = None
) -> list[str]:
    """Return what some recipes close, in the mean over the first ``seeds`` seeds, or all."""
    lines = ["| images | way | " + " | ".join(columns.values()) + " |", "| --- | --- |" + " --- |" * len(columns)]
    for domain in domains:
        recipes = result["transfer"][domain]
        for index, row in enumerate(recipes["mix"]):
            closed = " | ".join(percent(recipes[name][index]["closed"][:seeds]) for name in columns)
            lines.append(f"| {domain} | {row['source']} → {row['target']} | {closed} |")
    return lines


def learnt_from(result: dict[str, Any], recipe: str) -> str:
    """Return the heading of a recipe by its images, steps and rank."""
    config = TRAINED[recipe].config
    what = "images" if recipe in MIXES else "cells"
    return f"{result['recipes'][recipe]['images']:,} {what}, {config.steps:,} steps, rank {config.rank}"


def command(config: TrainingConfig) -> list[str]:
    """Return the command that trains as a recipe does."""
    words = ["tocom train --model MODEL --weights FILE --images FOLDER --out compensator.safetensors"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            words.append(f"--{field.name.replace('_', '-')}" + ("" if value is True else f" {value}"))
    lines = textwrap.wrap(" ".join(words), 100, break_on_hyphens=False, subsequent_indent="    ")
    return ["```sh", *(f"{line} \\" for line in lines[:-1]), lines[-1], "```"]


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
            if not row.get("use"):
                continue
            for score, (name, digits, more) in SCORES.items():
                values = [each[score] for each in row["compensated"]]
                loss = (row["without"][score] - statistics.mean(values)) * (1 if more else -1)
                if loss > max(values) - min(values):
                    where = (
                        f"{KINDS[part['kind']].lower()} at {part['source']}, {part['method']}, degree {row['target']}"
                    )
                    error = f" (± {row['log_loss_error']:.{digits}f} over the cells)" if score == "log_loss" else ""
                    found.append(f"{where}: {name} worse by {loss:.{digits}f}{error}")
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
    places[0].set_ylabel("feature gap closed, %")
    places[0].legend(title="trained on", fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def gpu_budget() -> list[str]:
    """Return the section on training with a GPU's budget; nothing where it was not measured."""
    paths = sorted(RESULTS.glob("gpu-training-*.json"))
    if not paths:
        return []
    result = json.loads(paths[0].read_text(encoding="utf-8"))
    runs = {run["recipe"]: run for run in result["runs"]}
    mixes = [run for name, run in runs.items() if name.startswith("mix-")]
    first, alone = mixes[0], runs["photographs-rank16"]
    targets = sorted({row["target"] for row in first["rows"]})
    heading = [f"| {{}} | {' | '.join(map(str, targets))} |", "| --- |" + " ---: |" * len(targets)]

    def closed(of: Sequence[dict[str, Any]], kind: str) -> str:
        rows = [[row["closed"] for row in run["rows"] if row["kind"] == kind] for run in of]
        return " | ".join(percent(values) for values in zip(*rows, strict=True))

    here, there = first["training"], TRAINED["mix"].config
    times = here["steps"] * here["batch_size"] / (there.steps * there.batch_size)
    lines = [
        "## What a GPU's budget does",
        f"The same mix and rank, {here['steps']} steps of {here['batch_size']} images: {times:.1f} times as many "
        f"images as above, {first['seconds']:.0f} s on an NVIDIA H200 that twelve runs shared "
        f"(`benchmarks/gpu_training.py`, torch {result['machine']['versions']['torch']}, "
        f"{result['machine']['measured']}). Share of the gap closed on the "
        "test images, float32:",
        "",
        heading[0].format("tested on"),
        heading[1],
        *(f"| {kind} | {closed(mixes, kind)} |" for kind in DOMAINS),
        f"| photographs, from photographs alone, rank {alone['training']['rank']} | {closed([alone], 'photographs')} |",
        "",
        "So it is neither steps nor rank that photographs lack: the same share is left as on two cores.",
        "",
        "Features of every patch (`--loss patch`), on the test cells; patches that merged share a row, so that no "
        "weights close more than the last line:",
        "",
        heading[0].format("learnt from"),
        heading[1],
    ]
    names = {"patch": "cells and photographs", "patch-rank16": "the same, rank 16", "patch-cells": "cells"}
    names |= {"patch-cells-fast": "cells, three times the rate", "patch-cells-hidden": "cells, hidden=1"}
    names |= {"patch-cells-relative": "cells, relative"}
    lines += [f"| {name} | {closed([runs[recipe]], 'cells')} |" for recipe, name in names.items()]
    rows = [row for row in runs["patch-cells-relative"]["rows"] if row["kind"] == "cells"]
    could = (percent([1 - row["without"]["least_patch_gap"] / row["without"]["patch_gap"]]) for row in rows)
    lines += [f"| *could be* | {' | '.join(could)} |", "", *_FAMILIES, heading[0].format("family"), heading[1]]
    for family in ("every", "spaced"):
        of = [run for name, run in runs.items() if name.startswith(f"family-{family}-")]
        (kind,) = {row["kind"] for row in of[0]["rows"]}
        gaps = [[row["with"]["gap"] for row in run["rows"]] for run in of]
        lines.append(f"| `{family}`, closed | {closed(of, kind)} |")
        left = (fixed(statistics.mean(values) * 1e3, 2) for values in zip(*gaps, strict=True))
        lines.append(f"| `{family}`, gap left, thousandths | {' | '.join(left)} |")
    return [*lines, "", *_CLOSES_LESS]


_FAMILIES = [
    "Merging in every block against merging in four ([Families](concepts.md#families-of-schedules)), each with its own "
    f"compensator: rank 2, {TRAINING_VIEWS} cells, tested on {OTHER_VIEWS:,} others, three seeds:",
    "",
]

_CLOSES_LESS = [
    "At 8 and 12 the spaced compensator closes more of its own gap than that of `every` does, at 16 and 20 less; what "
    "it leaves is less up to 16. [What else was tried](benchmarks.md#families-of-schedules).",
    "",
]


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


_MORE = [
    "## What more images and steps do",
    "A compensator needs no labels, so it may learn from every image that is at hand: here from the cells that neither "
    "the probe nor any choice or test uses. Three seeds, where ± stands; share of the gap closed on the test cells.",
    "",
]
_MIXES = [
    "## What more kinds of photographs do",
    f"The mix, and one of {TRAINING_VIEWS} of each kind whose photographs are squares of the {len(TRAINING_PICTURES)} "
    "pictures in wheels alone. Three seeds of each; share of the gap closed.",
    "",
]
_LOSS = [
    "## What the relative loss does",
    "`relative=True` minimises the mean logarithm of the images' losses. The plain mean is that of the few images with "
    "the largest gaps: of a mix it learns the kind whose gaps are large. One seed of each; share of the gap closed. "
    f"Both had as many steps; the mix is the one of {TRAINING_VIEWS} of each kind.",
    "",
]
_CELLS = [
    "## On the cells, fitted at one degree and run at another",
    "The task: is a solar cell defective? *Without*: the model as it was fitted, at another degree. *With*: the same, "
    "compensated. The compensators were trained on the pretrained backbone; the whole fine-tunes (one epoch, all "
    "weights, from the probe's head) have never seen them. A compensator brings the features back to those of the "
    "degree that the model was fitted at. For a model of degree 0 that is a gain; from one of degree 16 that runs at a "
    f"lower degree it also takes what more tokens give for nothing. *Use it*: whether {HELD_OUT} held-out cells have a "
    "lower log-loss with it, in the mean over the seeds; that is known before any test.",
    "",
]


def page(result: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} of {domain}" for domain, count in result["images"].items())
    bad = worse(result)
    lines = [
        *_head(counts, result["machine"]),
        *transfer_table(result),
        "",
        f"Cells alone: {TRAINING_VIEWS} whole cells, or with them all others that no choice and no test uses. The mix: "
        f"{TRAINING_VIEWS + OTHER_VIEWS:,} of each kind. Cells: these. Photographs: random squares, 0.3 to 1 of the "
        f"shorter side, {TRAINING_VIEWS} of {len(TRAINING_PICTURES)} pictures in wheels and {OTHER_VIEWS:,} of "
        "wallpapers and cut-out objects in Debian's packages (`benchmarks/photographs.py`). Digits: 1,400 of them. "
        "Half of all are mirrored. Training:",
        "",
        *(
            f"- `{name}`, {len(recipe['seeds'])} seed{'s' * (len(recipe['seeds']) > 1)}, {recipe['images']:,} images: "
            f"{recipe['training']}" + (f" (on {recipe['measured']})" if "measured" in recipe else "")
            for name, recipe in result["recipes"].items()
        ),
        "",
        "As a command, for a folder of your own images:",
        "",
        "<!-- not run by the tests: it trains for half an hour -->",
        *command(TRAINED["cells"].config),
        "",
        *_MORE,
        *comparison(result, {name: learnt_from(result, name) for name in MORE}, ("cells",)),
        "",
        *_MIXES,
        *comparison(result, {name: learnt_from(result, name) for name in MIXES}, DOMAINS),
        "",
        *_LOSS,
        *comparison(result, PLAIN, DOMAINS, 1),
        "",
        *gpu_budget(),
        *_CELLS,
    ]
    for part in result["cells"]:
        lines += [*cells_table(part), ""]
    lines += [
        "### Where it is worse",
        *(
            [
                "Where it is to be used, and is worse than without by more than the range of the seeds; behind ±, one "
                "standard error of that difference over the test cells:",
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

"""What an alignment is worth on the quickstart's model and cells; writes ``benchmarks/results/alignment.json``.

    python benchmarks/alignment_measure.py --only features     # an hour or two; every set of features is kept
    python benchmarks/alignment_measure.py [--across]          # the figures, from what there is

Fitted on the 820 cells that the quickstart learns from and chooses on (``--more``: on up to 1,600), measured on cells
that nothing learned from: feature gap, recall (the same cell found again among dense features), accuracy and log-loss
of the unchanged head. Alone, and on top of the compensators of ``families_measure.py`` where these are trained. By the
number of images. Across domains: fitted on cells, photographs or digits or on all three, measured on each. Intervals
are paired by image; a set of features that is not there is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from domains import DOMAINS, cell_views, quickstart_cells, test_views, training_views
from families_measure import CELLS, CHUNK, Unseen, interval, recall, trained
from measuring import RESULTS, between, machine
from results_measure import Features, Measured, cell_losses
from results_train import FOLDER, backbone
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import Subset

from tocom.alignment.ridge import FeatureMap, feature_gaps, fit_map
from tocom.compression.loading.preprocessing import input_config
from tocom.formats.methods import METHODS
from tocom.quickstart.head import fit_head
from tocom.system.files import write_json

RESULT, PAGE = RESULTS / "alignment.json", Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
MARKS = ("<!-- alignment -->", "<!-- end of alignment -->")
DEGREES = (16, 20, 8, 12, 4)
COUNTS = (25, 50, 100, 200, 400, 820, 1600)
SEEDS = (0, 1, 2)
RECIPE = "quickstart"
CROSSED = 16
KINDS = (*METHODS, "compensated", "more", "across")


class Fit:
    """Features of the cells that are fitted on, in the order that a smaller number of them is taken from."""

    def __init__(self, model: VisionTransformer, *, more: bool) -> None:
        entry = input_config(model)
        self.parts = [
            Measured("cells-held-out", model, cell_views("held_out", entry)),
            Measured("train", model, cell_views("train", entry)),
        ]
        if more:
            rest = cell_views("rest", entry)
            self.parts.append(Measured("more", model, Subset(rest, range(max(COUNTS) - 820))))

    def at(self, *arguments: Any, **options: Any) -> Features:
        """Return features [cells, channels]: see :meth:`results_measure.Measured.at`."""
        return np.concatenate([part.at(*arguments, **options) for part in self.parts])


def more_cells(model: VisionTransformer) -> Measured:
    """Return the cells that make the number of those fitted on up to 1,600."""
    return Measured("more", model, Subset(cell_views("rest", input_config(model)), range(max(COUNTS) - 820)))


def compute_features(kind: str, model: VisionTransformer, fit: Fit, unseen: Unseen) -> None:
    """Compute the features of one kind that are not there yet."""
    if kind == "across":
        across(model)
    elif kind == "more":
        for degree in (0, CROSSED, 8):
            more_cells(model).at(degree)
    else:
        for degree in DEGREES if kind != "merge" else (0, *DEGREES):
            for part in (*unseen.parts, *fit.parts):
                if kind == "compensated":
                    part.at(degree, recipe=RECIPE)
                else:
                    part.at(degree, kind)


def is_there(parts: Sequence[Measured], degree: int, method: str = "merge") -> bool:
    """Return whether features without a compensator have been computed."""
    return all(part.has(degree, method) for part in parts)


def scored(head: torch.nn.Linear, found: Features, dense: Features, labels: np.ndarray) -> dict[str, Any]:
    """Return what features are worth, with intervals over the cells."""
    losses = cell_losses(head, found, labels)
    right = head(torch.from_numpy(found)).argmax(-1).numpy() == labels
    return {
        "gap": interval(feature_gaps(dense, found)),
        "recall": float(recall(found, dense).mean()),
        "accuracy": float(right.mean()),
        "log_loss": float(losses.mean()),
        "log_loss_change": interval(losses - cell_losses(head, dense, labels)),
    }


def described(fitted: FeatureMap) -> dict[str, Any]:
    return {"used": fitted.matrix is not None, "strength": fitted.strength, "expected_closed": fitted.closed}


def on_cells(fit: Fit, unseen: Unseen, head: torch.nn.Linear, labels: np.ndarray) -> list[dict[str, Any]]:
    """Return per method and degree what the four ways are worth; of compensators every seed."""
    rows, dense, aim = [], unseen.at(0), fit.at(0)
    for method in METHODS:
        for degree in DEGREES:
            if not is_there([*fit.parts, *unseen.parts], degree, method):
                continue
            found, given = unseen.at(degree, method), fit.at(degree, method)
            maps = [fit_map(given, aim, seed=seed) for seed in SEEDS]
            row = {
                "method": method,
                "degree": degree,
                "alone": scored(head, found, dense, labels),
                "alignment": [scored(head, each.apply(found), dense, labels) | described(each) for each in maps],
                "gap_change": interval(feature_gaps(dense, maps[0].apply(found)) - feature_gaps(dense, found)),
                "compensator": [],
                "both": [],
            }
            for seed in trained(RECIPE) if method == "merge" else []:
                compensated = unseen.at(degree, recipe=RECIPE, seed=seed)
                fitted = fit_map(fit.at(degree, recipe=RECIPE, seed=seed), aim, seed=seed)
                row["compensator"].append(scored(head, compensated, dense, labels))
                row["both"].append(scored(head, fitted.apply(compensated), dense, labels) | described(fitted))
            rows.append(row)
    return rows


def by_count(fit: Fit, unseen: Unseen) -> list[dict[str, Any]]:
    """Return per degree and number of images the share of the gap closed on unseen cells, for three draws of them."""
    rows, dense, aim = [], unseen.at(0), fit.at(0)
    for degree in DEGREES:
        if not is_there([*fit.parts, *unseen.parts], degree):
            continue
        found, given = unseen.at(degree), fit.at(degree)
        without = feature_gaps(dense, found).mean()
        for count in COUNTS:
            if count > len(aim):
                continue
            closed = []
            for seed in SEEDS:
                drawn = np.random.default_rng(seed).permutation(len(aim))[:count]
                fitted = fit_map(given[drawn], aim[drawn], seed=seed)
                closed.append(float(1 - feature_gaps(dense, fitted.apply(found)).mean() / without))
            rows.append({"degree": degree, "images": count, "closed": closed})
    return rows


def across(model: VisionTransformer) -> list[dict[str, Any]]:
    """Return per domain that a map is fitted on, and per domain it meets, the share of the gap closed at degree 16."""
    entry = input_config(model)
    given = {name: Measured(f"fit-{name}", model, Subset(training_views(name, entry), range(200))) for name in DOMAINS}
    met = {name: Measured(f"met-{name}", model, Subset(test_views(name, entry), range(64))) for name in DOMAINS}
    pairs = {name: (each.at(CROSSED), each.at(0)) for name, each in given.items()}
    pairs["all three"] = tuple(np.concatenate(each) for each in zip(*pairs.values(), strict=True))
    rows = []
    for name, (found, aim) in pairs.items():
        fitted = fit_map(found, aim)
        for other, images in met.items():
            dense, plain = images.at(0), images.at(CROSSED)
            without, aligned = feature_gaps(dense, plain), feature_gaps(dense, fitted.apply(plain))
            rows.append(
                {
                    "fitted_on": name,
                    "measured_on": other,
                    "used": fitted.matrix is not None,
                    "gap": float(without.mean()),
                    "closed": float(1 - aligned.mean() / without.mean()),
                    "gap_change": interval(aligned - without),
                }
            )
    return rows


def section(result: dict[str, Any]) -> str:
    """Return the tables of the page."""
    lines = [
        f"Fitted on {result['fitted_on']:,} cells, measured on {result['unseen']:,} others; dense: accuracy "
        f"{100 * result['dense']['accuracy']:.1f} %, log-loss {result['dense']['log_loss']:.3f}. What is not in the "
        "table was not measured.",
        "",
        "| method | degree | way | gap | closed | recall | accuracy | log-loss | change of log-loss to dense |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["cells"]:
        ways = {
            "compression alone": [row["alone"]],
            **{name: row[name] for name in ("compensator", "alignment", "both")},
        }
        for way, each in ways.items():
            if not each:
                continue
            gap = np.mean([one["gap"][0] for one in each])
            low, high = (np.mean([one["log_loss_change"][end] for one in each]) for end in (1, 2))
            closed = 1 - gap / row["alone"]["gap"][0]
            lines.append(
                f"| {row['method']} | {row['degree']} | {way} | {gap:.5f} | {100 * closed:.0f} % "
                f"| {np.mean([one['recall'] for one in each]):.3f} "
                f"| {100 * np.mean([one['accuracy'] for one in each]):.1f} % "
                f"| {np.mean([one['log_loss'] for one in each]):.3f} | {low:+.3f} to {high:+.3f} |"
            )
    lines += ["", "Share of the gap closed on unseen cells, by the number of images, three draws:", ""]
    counts = sorted({row["images"] for row in result["by_count"]})
    lines += ["| degree | " + " | ".join(map(str, counts)) + " |", "| ---: |" + " ---: |" * len(counts)]
    for degree in sorted({row["degree"] for row in result["by_count"]}):
        of = {row["images"]: row["closed"] for row in result["by_count"] if row["degree"] == degree}
        cells = [f"{100 * min(of[n]):.0f} to {100 * max(of[n]):.0f} %" for n in counts]
        lines.append(f"| {degree} | " + " | ".join(cells) + " |")
    if result["across"]:
        lines += ["", f"Fitted on 200 images of one kind, met by another, degree {CROSSED}:", ""]
        lines += [
            "| fitted on | measured on | gap | closed | change of the gap |",
            "| --- | --- | ---: | ---: | ---: |",
        ]
        for row in result["across"]:
            _, low, high = row["gap_change"]
            closed = f"{100 * row['closed']:.0f} %" if row["used"] else "refused"
            kinds = f"{row['fitted_on']} | {row['measured_on']}"
            lines.append(f"| {kinds} | {row['gap']:.5f} | {closed} | {low:+.5f} to {high:+.5f} |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=("features",))
    options.add_argument("--of", choices=KINDS, nargs="+", help="with --only features: these, side by side elsewhere")
    options.add_argument("--cells", type=int, default=CELLS, choices=range(CHUNK, CELLS + 1, CHUNK))
    options.add_argument("--more", action="store_true", help="fit on up to 1,600 cells")
    options.add_argument("--across", action="store_true", help="domains too; needs scikit-image and scikit-learn")
    options.add_argument("--threads", type=int, help="of torch")
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    (FOLDER / "features").mkdir(parents=True, exist_ok=True)
    model, split = backbone(), quickstart_cells()
    fit, unseen = Fit(model, more=chosen.more), Unseen(model, chosen.cells)
    if chosen.only == "features":
        for kind in chosen.of or KINDS:
            compute_features(kind, model, fit, unseen)
        return
    head = fit_head(torch.from_numpy(fit.parts[1].at(0)), [cell.label for cell in split.train])
    cells = [*split.test, *split.rest[len(split.rest) - (CELLS - len(split.test)) :]][: chosen.cells]
    labels = np.array([cell.label for cell in cells])
    result = {
        "machine": machine(),
        "unseen": chosen.cells,
        "fitted_on": len(fit.at(0)),
        "dense": scored(head, unseen.at(0), unseen.at(0), labels),
        "cells": on_cells(fit, unseen, head, labels),
        "by_count": by_count(fit, unseen),
        "across": across(model) if chosen.across else [],
    }
    write_json(RESULT, result)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(between(page, *MARKS, "\n\n".join((MARKS[0], section(result), MARKS[1]))), encoding="utf-8")
    print(RESULT, file=sys.stderr)


if __name__ == "__main__":
    main()

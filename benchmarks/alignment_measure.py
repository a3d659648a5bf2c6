"""What an alignment is worth on the quickstart's model and cells; writes ``benchmarks/results/alignment.json``.

    python benchmarks/alignment_measure.py --only features     # an hour or two; every set of features is kept
    python benchmarks/alignment_measure.py                     # the figures, from what there is
    python benchmarks/alignment_page.py                        # docs/alignment.md

Fitted on 700 of the 820 cells that the quickstart learns from and chooses on, three draws of them, measured on cells
that nothing learned from: feature gap, recall (the same cell found again among dense features), accuracy and log-loss
of the unchanged head. Alone, and on top of the quickstart's compensator, whose file is
``build/results/quickstart-seed0.safetensors``. By the number of images. Across domains: fitted on cells, photographs or
digits or on all three, measured on each. Intervals are paired by image; what has no features yet is left out.

The cells that are left for measuring are half defective ones; of all cells about a quarter are. So means are taken per
class and weighed by the share of all cells that the class has (post-stratification).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from domains import DOMAINS, cell_views, quickstart_cells, test_views, training_views
from measuring import RESULTS, machine
from results_measure import Features, Measured, cell_losses
from results_train import FOLDER, backbone, compensator_path
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import Subset
from unseen import CELLS, CHUNK, Classes, Unseen, mean_interval

from tocom import Compensator
from tocom.alignment.ridge import FeatureMap, feature_gaps, fit_first, fit_map
from tocom.compression.loading.preprocessing import input_config
from tocom.formats.methods import METHODS
from tocom.quickstart.figures import is_found
from tocom.quickstart.head import fit_head
from tocom.system.files import write_json

RESULT = RESULTS / "alignment.json"
DEGREES = (16, 20, 8, 12, 4)
COUNTED = (8, 16, 20)
COUNTS = (25, 50, 100, 200, 400, 820, 1600)
FITTED_ON = 700
SEEDS = (0, 1, 2)
RECIPE = "quickstart"
CROSSED = 16
KINDS = (*METHODS, "compensated", "more", "across")


class Fit:
    """Features of the 820 cells that are fitted on."""

    def __init__(self, model: VisionTransformer) -> None:
        entry = input_config(model)
        self.parts = [
            Measured("cells-held-out", model, cell_views("held_out", entry)),
            Measured("train", model, cell_views("train", entry)),
        ]

    def at(self, *arguments: Any, **options: Any) -> Features:
        """Return features [cells, channels]: see :meth:`results_measure.Measured.at`."""
        return np.concatenate([part.at(*arguments, **options) for part in self.parts])


def more_cells(model: VisionTransformer) -> Measured:
    """Return the cells that make the number of those fitted on up to 1,600."""
    return Measured("more", model, Subset(cell_views("rest", input_config(model)), range(max(COUNTS) - 820)))


def compute_features(kind: str, model: VisionTransformer, fit: Fit, unseen: Unseen) -> None:
    """Compute the features of one kind that are not there yet."""
    if kind == "across":
        across(model, compute=True)
    elif kind == "more":
        for degree in (0, *COUNTED):
            more_cells(model).at(degree)
    else:
        for degree in DEGREES if kind != "merge" else (0, *DEGREES):
            for part in (*unseen.parts, *fit.parts):
                if kind == "compensated":
                    part.at(degree, recipe=RECIPE)
                else:
                    part.at(degree, kind)


def is_there(parts: Sequence[Measured], degree: int, method: str = "merge", recipe: str = "") -> bool:
    """Return whether these features have been computed."""
    return all(part.has(degree, method, recipe=recipe) for part in parts)


def per_cell(head: torch.nn.Linear, found: Features, dense: Features, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return what features are worth at each cell, [cells] each."""
    return {
        "gap": feature_gaps(dense, found),
        "recall": is_found(found, dense).astype(float),
        "accuracy": (head(torch.from_numpy(found)).argmax(-1).numpy() == labels).astype(float),
        "log_loss": cell_losses(head, found, labels),
    }


def described(fitted: FeatureMap) -> dict[str, Any]:
    return {"used": fitted.used, "strength": fitted.strength, "expected_closed": fitted.closed}


def drawn_maps(given: Features, aim: Features, count: int) -> list[FeatureMap]:
    """Return a map per seed, of so many images that the seed draws."""
    draws = [np.random.default_rng(seed).permutation(len(aim))[:count] for seed in SEEDS]
    return [fit_map(given[drawn], aim[drawn], seed=seed) for seed, drawn in zip(SEEDS, draws, strict=True)]


def trained_steps() -> int | None:
    """Return how many steps the compensator was trained; None without one."""
    path = compensator_path(RECIPE, 0)
    found = re.search(r"\bsteps=(\d+)", Compensator.load(path).metadata["training"]) if path.exists() else None
    return None if found is None else int(found[1])


def on_cells(fit: Fit, unseen: Unseen, head: torch.nn.Linear, classes: Classes) -> list[dict[str, Any]]:
    """Return per method and degree what the four ways are worth."""
    rows, dense, aim, labels = [], unseen.at(0), fit.at(0), classes.labels
    at_dense = per_cell(head, dense, dense, labels)
    for method in METHODS:
        for degree in sorted(DEGREES):
            if not is_there([*fit.parts, *unseen.parts], degree, method):
                continue
            row: dict[str, Any] = {"method": method, "degree": degree}
            others = {"dense": at_dense}
            for name, way, recipe in (("alone", "alignment", ""), ("compensator", "both", RECIPE)):
                if recipe and (method != "merge" or not is_there([*fit.parts, *unseen.parts], degree, recipe=recipe)):
                    continue
                plain, given = (each.at(degree, method, recipe=recipe) for each in (unseen, fit))
                maps = drawn_maps(given, aim, FITTED_ON)
                of_plain = per_cell(head, plain, dense, labels)
                aligned = [per_cell(head, each.apply(plain), dense, labels) for each in maps]
                row[name] = classes.scored([of_plain], others)
                others = {**others, name: of_plain}
                row[way] = {**classes.scored(aligned, others), "maps": [described(each) for each in maps]}
                others[way] = {score: np.mean([each[score] for each in aligned], axis=0) for score in of_plain}
            rows.append(row)
    return rows


def by_count(fit: Fit, unseen: Unseen, more: Measured, classes: Classes) -> list[dict[str, Any]]:
    """Return per way, degree and number of images the share of the gap closed on unseen cells, for three draws."""
    rows, dense = [], unseen.at(0)
    for recipe in ("", RECIPE):
        for degree in COUNTED if not recipe else COUNTED[1:2]:
            if not is_there([*fit.parts, *unseen.parts], degree, recipe=recipe):
                continue
            found, given, aim = unseen.at(degree, recipe=recipe), fit.at(degree, recipe=recipe), fit.at(0)
            if not recipe and is_there([more], degree) and is_there([more], 0):
                given, aim = np.concatenate([given, more.at(degree)]), np.concatenate([aim, more.at(0)])
            without = classes.mean(feature_gaps(dense, unseen.at(degree)))
            for count in (count for count in COUNTS if count <= len(aim)):
                gaps = [classes.mean(feature_gaps(dense, each.apply(found))) for each in drawn_maps(given, aim, count)]
                closed = [float(1 - gap / without) for gap in gaps]
                rows.append(
                    {"way": "both" if recipe else "alignment", "degree": degree, "images": count, "closed": closed}
                )
    return rows


def per_fit(pairs: Sequence[tuple[Features, Features]]) -> tuple[Features, Features]:
    """Return features of several kinds of images, and those to aim at, as of one."""
    found, aim = (np.concatenate(each) for each in zip(*pairs, strict=True))
    return found, aim


def across(model: VisionTransformer, *, compute: bool = False) -> list[dict[str, Any]]:
    """Return per domain that a map is fitted on, and per domain it meets, the share of the gap closed at degree 16.

    Of the images that it meets, every second one checks the map, and the others measure it: of photographs, no picture
    is in both. Nothing where features are missing that are not to be computed.
    """
    entry = input_config(model)
    given, met = {}, {}
    for name in DOMAINS:
        if name == "cells":  # the first of those that have features already
            given[name], met[name] = Measured("train", model, None), Measured("unseen-0", model, None)
        else:
            # Features that are kept need no pictures, whose package may be gone since.
            fitted_on = Subset(training_views(name, entry), range(200)) if compute else None
            given[name] = Measured(f"fit-{name}", model, fitted_on)
            met[name] = Measured(f"met-{name}", model, Subset(test_views(name, entry), range(64)) if compute else None)
    if not compute and not all(is_there([*given.values(), *met.values()], degree) for degree in (0, CROSSED)):
        return []
    pairs = {name: (each.at(CROSSED)[:200], each.at(0)[:200]) for name, each in given.items()}
    pairs["all three"] = per_fit(list(pairs.values()))
    rows = []
    for name, pair in pairs.items():
        fitted = fit_map(*pair)
        for other, images in met.items():
            plain, dense = images.at(CROSSED)[:128], images.at(0)[:128]
            checked = fit_first(*per_fit([pair, (plain[::2], dense[::2])]), len(pair[0]))
            plain, dense = plain[1::2], dense[1::2]
            without, aligned = feature_gaps(dense, plain), feature_gaps(dense, fitted.apply(plain))
            rows.append(
                {
                    "fitted_on": name,
                    "measured_on": other,
                    "images": len(plain),
                    "used": fitted.used,
                    "used_once_checked": checked.used,
                    "gap": float(without.mean()),
                    "closed": float(1 - aligned.mean() / without.mean()),
                    "gap_change": mean_interval(aligned - without),
                }
            )
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=("features",))
    options.add_argument("--of", choices=KINDS, nargs="+", help="with --only features: these, side by side elsewhere")
    options.add_argument("--cells", type=int, default=CELLS, choices=range(CHUNK, CELLS + 1, CHUNK))
    options.add_argument("--threads", type=int, help="of torch and ONNX Runtime")
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    (FOLDER / "features").mkdir(parents=True, exist_ok=True)
    model, split = backbone(), quickstart_cells()
    fit, unseen = Fit(model), Unseen(model, chosen.cells)
    if chosen.only == "features":
        for kind in chosen.of or KINDS:
            compute_features(kind, model, fit, unseen)
        return
    head = fit_head(torch.from_numpy(fit.parts[1].at(0)), [cell.label for cell in split.train])
    classes, dense = unseen.classes, unseen.at(0)
    labels = classes.labels
    result = {
        "machine": machine(),
        "unseen": chosen.cells,
        "fitted_on": FITTED_ON,
        "classes": {"shares": classes.shares, "cells": [int((labels == label).sum()) for label in (0, 1)]},
        "steps": trained_steps(),
        "dense": classes.scored([per_cell(head, dense, dense, labels)], {}),
        "cells": on_cells(fit, unseen, head, classes),
        "by_count": by_count(fit, unseen, more_cells(model), classes),
        "across": across(model),
    }
    write_json(RESULT, result)
    print(RESULT, file=sys.stderr)


if __name__ == "__main__":
    main()

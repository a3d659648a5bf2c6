"""Compare families of schedules on the quickstart's model and cells; writes ``benchmarks/results/families.json``.

    python benchmarks/families_measure.py --only train         # 3 compensators of each family, the quickstart's budget
    python benchmarks/families_measure.py --only features      # an hour or two; every set of features is kept
    python benchmarks/families_measure.py                      # the rest, and the figures

``every`` block against four blocks (``spaced:1,4,7,10``), which leave equal products, by merging and by pruning: the
feature gap to the dense model, and the recall: the same cell found again in a gallery of dense features. 1,000 cells
that nothing learned from, weighed by class; differences are paired by cell. Then the gap with the compensators of both
families, each trained for its own. A run that was stopped goes on where it was; ``--cells 200`` makes do with fewer.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from domains import training_views
from measuring import RESULTS, machine
from results_train import FOLDER, SEEDS, backbone, compensator_path, train_to
from unseen import CELLS, CHUNK, Unseen

from tocom.alignment.ridge import feature_gaps
from tocom.compression.loading.preprocessing import input_config
from tocom.compression.macs import count_macs
from tocom.compression.surgery import input_tokens
from tocom.compression.tokens import removal_schedule
from tocom.formats.families import EVERY
from tocom.formats.methods import METHODS
from tocom.quickstart.figures import is_found
from tocom.system.files import write_json
from tocom.training.config import TrainingConfig

RESULT = RESULTS / "families.json"
SPACED = "spaced:1,4,7,10"
FAMILIES = (EVERY, SPACED)
RECIPES = {"family-every": EVERY, "family-spaced": SPACED}
DEGREES = (16, 20, 12, 8)
COMPENSATED = (16, 20, 12)


def training_config(family: str) -> TrainingConfig:
    """Return the quickstart's steps, images and batch, in bfloat16."""
    return TrainingConfig(
        groups=20,
        hidden=1.0,
        steps=300,
        batch_size=2,
        precision="bf16",
        learning_rate=5e-4,
        source_degree=0,
        far_targets=True,
        family=family,
    )


def train_all() -> None:
    """Train the compensators that are not there yet."""
    model = backbone()
    views = training_views("cells", input_config(model))
    for seed in SEEDS:
        for recipe, family in RECIPES.items():
            path = compensator_path(recipe, seed)
            if not path.exists():
                train_to(path, model, views, replace(training_config(family), seed=seed))


def compare(unseen: Unseen, method: str, degree: int) -> dict[str, Any]:
    """Return gap and recall of both families at a degree, and their paired differences (spaced minus every)."""
    dense, model, classes = unseen.at(0), unseen.model, unseen.classes
    row: dict[str, Any] = {"method": method, "degree": degree}
    gaps, found = {}, {}
    for family in (EVERY, SPACED):
        features = unseen.at(degree, method, family=family)
        gaps[family], found[family] = feature_gaps(dense, features), is_found(features, dense)
        removed = removal_schedule(input_tokens(model), len(model.blocks), degree, model.num_prefix_tokens, family)
        row[family] = {
            "removed": list(removed),
            "macs": count_macs(model, removed, method=method),
            "gap": classes.interval(gaps[family]),
            "recall": classes.mean(found[family].astype(float)),
        }
    row["gap_difference"] = classes.interval(gaps[SPACED] - gaps[EVERY])
    row["recall_difference"] = classes.interval(found[SPACED].astype(float) - found[EVERY].astype(float))
    return row


def compensate(unseen: Unseen, degree: int) -> dict[str, Any]:
    """Return per family and seed the share of its own gap that its compensator closes; and what both leave, paired.

    ``left_difference`` is the gap with a compensator, spaced minus every, each cell's the mean of its seeds.
    """
    dense, classes = unseen.at(0), unseen.classes
    row: dict[str, Any] = {"degree": degree}
    left = {}
    for recipe, family in RECIPES.items():
        without = classes.mean(feature_gaps(dense, unseen.at(degree, family=family)))
        with_it = [feature_gaps(dense, unseen.at(degree, family=family, recipe=recipe, seed=seed)) for seed in SEEDS]
        gaps, left[family] = [classes.mean(each) for each in with_it], np.mean(with_it, axis=0)
        row[family] = {"gaps": gaps, "closed": [1 - gap / without for gap in gaps]}
    row["left_difference"] = classes.interval(left[SPACED] - left[EVERY])
    return row


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=("train", "features"))
    options.add_argument("--cells", type=int, default=CELLS, choices=range(CHUNK, CELLS + 1, CHUNK))
    options.add_argument("--threads", type=int, help="of torch")
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    (FOLDER / "features").mkdir(parents=True, exist_ok=True)
    if chosen.only != "features":
        train_all()
    if chosen.only == "train":
        return
    unseen = Unseen(backbone(), chosen.cells)
    rows = [compare(unseen, method, degree) for method in METHODS for degree in DEGREES]
    if chosen.only == "features":
        return
    result = {
        "machine": machine(),
        "cells": unseen.cells,
        "families": rows,
        "compensated": [compensate(unseen, degree) for degree in COMPENSATED],
    }
    write_json(RESULT, result)
    print(RESULT, file=sys.stderr)


if __name__ == "__main__":
    main()

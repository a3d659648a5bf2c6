"""Measure what the compensators of ``results_train.py`` are worth; writes ``benchmarks/results/compensator.json``.

    python benchmarks/results_train.py
    python benchmarks/results_measure.py       # two hours or so; every set of features is kept
    python benchmarks/results_measure.py --only transfer     # the recipes that are trained, on all kinds of images
    python benchmarks/results_page.py

On the cells: a linear probe and a whole fine-tune, each fitted at degree 0 and at degree 16, run at other degrees
without a compensator and with that of each seed: accuracy, AUROC, log-loss and feature gap on the test cells. On all
three kinds of images: the share of the feature gap that a compensator closes, trained on cells alone or on the mix.
Nothing is chosen on test images: whether to use the compensator for a pair of degrees, held-out cells say, by the mean
log-loss over all seeds. What has not been trained is left out; the page says so.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from domains import DOMAINS, cell_views, quickstart_cells, test_views, training_views
from measuring import RESULTS, machine
from numpy.typing import NDArray
from results_train import FOLDER, RECIPES, SOURCES, backbone, compensator_path, fine_tuned_path
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tocom import Compensator
from tocom.alignment.ridge import feature_gaps
from tocom.compensator.compensator import model_sha256
from tocom.compression.loading.preprocessing import input_config
from tocom.export import export
from tocom.formats.bundle import Bundle
from tocom.formats.families import EVERY
from tocom.quickstart.cells import LABELS
from tocom.quickstart.head import fit_head
from tocom.system.files import atomic_path, sha256_file, write_json

RESULT = RESULTS / "compensator.json"
TARGETS = (0, 4, 8, 12, 16, 20)
TRANSFERRED = [name for name, recipe in RECIPES.items() if recipe.config.method == "merge"]
METHODS = {"merge": "cells", "prune": "cells-prune"}  # and the recipe that is measured on the cells
Features = NDArray[np.float32]
Row = dict[str, Any]


def trained(recipe: str) -> list[int]:
    """Return the seeds that a recipe has been trained with."""
    return [seed for seed in RECIPES[recipe].seeds if compensator_path(recipe, seed).exists()]


def described(recipe: str) -> dict[str, Any]:
    """Return how a recipe has been trained: its seeds, how many images, the configuration of the first seed."""
    seeds = trained(recipe)
    metadata = Compensator.load(compensator_path(recipe, seeds[0])).metadata
    return {"seeds": seeds, "images": int(metadata["images"]), "training": metadata["training"]}


def named(path: Path) -> str:
    """Return what features of a file's weights are kept by: another training of the same name is another name."""
    return f"{path.stem}-{sha256_file(path)[:8]}"


class Measured:
    """Pooled features of one backbone on one set of images, computed once per degree and compensator."""

    def __init__(self, name: str, model: VisionTransformer, images: Any) -> None:
        self.name, self.model, self.images = name, model, images

    def _path(self, degree: int, method: str, family: str, recipe: str, seed: int, source: int) -> Path:
        along = "" if family == EVERY or not degree else f"-{family.replace(':', '-')}"
        key = f"{method}-{degree}{along}" + (f"-{named(compensator_path(recipe, seed))}-from{source}" if recipe else "")
        return FOLDER / "features" / f"{self.name}-{key}.npy"

    def has(self, degree: int, method: str = "merge", *, family: str = EVERY, recipe: str = "", seed: int = 0) -> bool:
        """Return whether features have been computed."""
        if recipe and not compensator_path(recipe, seed).exists():
            return False
        return self._path(degree, method, family, recipe, seed, 0).exists()

    def at(
        self,
        degree: int,
        method: str = "merge",
        *,
        family: str = EVERY,
        recipe: str = "",
        seed: int = 0,
        source: int = 0,
    ) -> Features:
        """Return features [images, channels] at a degree; with a recipe, compensated from the source degree."""
        path = self._path(degree, method, family, recipe, seed, source)
        if path.exists():
            return np.load(path)
        print(path.stem, file=sys.stderr, flush=True)
        session = onnx_session(self.model, degree, method, family, recipe, seed, source if recipe else 0)
        found = np.concatenate([session.run(None, {"images": image[None].numpy()})[0] for image in self.images])
        with (
            atomic_path(path) as beside,
            beside.open("wb") as file,
        ):  # what a stopped run leaves would count as measured
            np.save(file, found)
        return found


@lru_cache(maxsize=2)
def onnx_session(
    model: VisionTransformer, degree: int, method: str, family: str, recipe: str, seed: int, source: int
) -> onnxruntime.InferenceSession:
    """Return a session that gives pooled features as torch does, which the export checks, in half of torch's time."""
    along = family.replace(":", "-")
    key = f"{model_sha256(model)[:8]}-{method}-{degree}-{along}"
    key += f"-{named(compensator_path(recipe, seed))}-from{source}" if recipe else ""
    path = FOLDER / "bundles" / key
    if not path.exists():
        bare = copy.deepcopy(model)
        bare.reset_classifier(0)
        export(
            bare,
            path,
            degrees=(degree,),
            method=method,
            family=family,
            compensator=Compensator.load(compensator_path(recipe, seed)) if recipe else None,
            source_degree=source,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(Bundle(path).onnx_path(degree)), options)


def cell_losses(head: nn.Linear, features: Features, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log-loss of every cell, [cells]."""
    logarithms = head(torch.from_numpy(features)).double().log_softmax(-1).numpy()
    return -logarithms[np.arange(len(labels)), labels]


def scores(head: nn.Linear, features: Features, reference: Features, labels: NDArray[np.int64]) -> dict[str, float]:
    """Return accuracy, AUROC, log-loss of a head on features, and their mean gap to those at the source degree."""
    probabilities = head(torch.from_numpy(features)).double().softmax(-1).numpy()
    return {
        "accuracy": float((probabilities.argmax(-1) == labels).mean()),
        "auroc": float(roc_auc_score(labels, probabilities[:, 1])),
        "log_loss": float(cell_losses(head, features, labels).mean()),
        "feature_gap": float(feature_gaps(reference, features).mean()),
    }


def on_cells(kind: str, source: int, method: str, cells: Mapping[str, Any], labels: Mapping[str, Any]) -> list[Row]:
    """Return a row per target degree of a model fitted at ``source``; of each part of the cells: images and labels.

    ``log_loss_error`` is the standard error, over the test cells, of the change of the log-loss by the compensator.
    """
    model, recipe, rows = backbone(), METHODS[method], []
    if kind == "probe":
        fitted = Measured("train", model, cells["train"]).at(source, method)
        head, name = fit_head(torch.from_numpy(fitted), labels["train"]), "cells"
    else:
        state = load_file(fine_tuned_path(source, method))
        head, name = nn.Linear(model.embed_dim, len(LABELS)), named(fine_tuned_path(source, method))
        head.load_state_dict({name: state.pop(f"head.{name}") for name in ("weight", "bias")})
        model.load_state_dict(state)
    head.requires_grad_(False)
    test, held_out = Measured(name, model, cells["test"]), Measured(f"{name}-held-out", model, cells["held_out"])
    reference, truth = test.at(source, method), {part: np.array(each) for part, each in labels.items()}

    def compensated(on: Measured, target: int) -> list[Features]:
        return [on.at(target, method, recipe=recipe, seed=seed, source=source) for seed in trained(recipe)]

    def losses(on: Measured, part: str, target: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the log-loss of every cell, without [cells] and with the compensator of every seed [seeds, cells]."""
        without, *with_it = (
            cell_losses(head, each, truth[part]) for each in (on.at(target, method), *compensated(on, target))
        )
        return without, np.stack(with_it)

    for target in TARGETS:
        row: Row = {"target": target, "without": scores(head, test.at(target, method), reference, truth["test"])}
        rows.append(row)
        if target == source:
            continue
        row["compensated"] = [scores(head, each, reference, truth["test"]) for each in compensated(test, target)]
        without, with_it = losses(test, "test", target)
        change = with_it.mean(axis=0) - without
        row["log_loss_error"] = float(change.std(ddof=1) / len(change) ** 0.5)
        without, with_it = losses(held_out, "held_out", target)
        row["held_out_log_loss"] = {
            "without": float(without.mean()),
            "compensated": [float(each) for each in with_it.mean(axis=1)],
        }
        row["use"] = bool(with_it.mean() < without.mean())
    return rows


def transfer(domain: str, recipe: str, images: Any) -> list[dict[str, Any]]:
    """Return per direction and seed the share of the gap closed, and of images that came nearer."""
    measured, rows = Measured(domain, backbone(), images), []
    for source, target in [(0, target) for target in TARGETS[1:]] + [(max(SOURCES), 0)]:
        reference = measured.at(source)
        without = feature_gaps(reference, measured.at(target))
        gaps = [
            feature_gaps(reference, measured.at(target, recipe=recipe, seed=seed, source=source))
            for seed in trained(recipe)
        ]
        rows.append(
            {
                "source": source,
                "target": target,
                "gap": float(without.mean()),
                "closed": [float(1 - gap.mean() / without.mean()) for gap in gaps],
                "nearer": [float((gap < without).mean()) for gap in gaps],
            }
        )
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--only", choices=("transfer",), help="this alone; the other figures stay as they were measured"
    )
    options.add_argument("--threads", type=int, help="of torch")
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    entry, split = input_config(backbone()), quickstart_cells()
    labels = {part: [cell.label for cell in getattr(split, part)] for part in ("train", "held_out", "test")}
    tests = {domain: test_views(domain, entry) for domain in DOMAINS}
    recipes = {name: {**described(name), "measured": machine()["measured"]} for name in RECIPES if trained(name)}
    crossed = {
        domain: {recipe: transfer(domain, recipe, tests[domain]) for recipe in TRANSFERRED if recipe in recipes}
        for domain in DOMAINS
    }
    if chosen.only:
        result = json.loads(RESULT.read_text(encoding="utf-8"))
        result["recipes"] |= recipes
        for domain, rows in crossed.items():
            result["transfer"][domain] |= rows
        write_json(RESULT, result)
        return
    cells = {"train": training_views("cells", entry), "held_out": cell_views("held_out", entry), "test": tests["cells"]}
    parts = [
        (
            kind,
            source,
            method,
            trained(METHODS[method]) and (kind == "probe" or fine_tuned_path(source, method).exists()),
        )
        for method in METHODS
        for kind in ("probe", "fine-tune")
        for source in SOURCES
    ]
    result = {
        "machine": machine(),
        "recipes": recipes,
        "images": {domain: len(views) for domain, views in tests.items()},
        "transfer": crossed,
        "cells": [
            {
                "kind": kind,
                "source": source,
                "method": method,
                "rows": on_cells(kind, source, method, cells, labels) if there else None,
            }
            for kind, source, method, there in parts
        ],
    }
    write_json(RESULT, result)


if __name__ == "__main__":
    main()

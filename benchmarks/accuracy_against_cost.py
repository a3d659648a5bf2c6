"""What every cheap way to run the quickstart's one model is worth, over cost: classification and search.

    make quickstart
    python benchmarks/accuracy_against_cost.py quickstart-output     # half an hour on two idle cores

Dense, merging with and without the compensator, pruning, and the dense model on a smaller image, all through ONNX
Runtime, on the 1,804 cells that neither head nor compensator saw. Classification twice: by the dense model's head,
nothing re-tuned; and by a head fitted again on the features of that way. Search: 600 of these cells as if photographed
again (turned by up to half a degree, up to 2 % cut off, 3 % brighter or darker; seeded) among the dense features of all
1,804. Differences to dense are paired by cell; intervals are 95 % of a bootstrap. A run that was stopped goes on where
it was. Writes ``benchmarks/results/accuracy_against_cost.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, ROOT, machine
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tocom import load_model
from tocom.alignment.ridge import feature_gaps
from tocom.export import export
from tocom.formats.bundle import Bundle
from tocom.images import preprocess
from tocom.quickstart.cells import Cell, split_cells
from tocom.quickstart.figures import found_again, share
from tocom.quickstart.head import fit_head
from tocom.quickstart.weights import BACKBONE, IMAGE_SIZE
from tocom.runtime import Runtime
from tocom.system.files import atomic_path, sha256_file, write_json

FOLDER = ROOT / "build" / "results" / "cost"
DEGREES, SIDES = (16, 20), (168, 112)
Features = NDArray[np.float32]
Figure = dict[str, float]


@dataclass(frozen=True)
class Way:
    """One way to run the model.

    Attributes:
        kind: What it is a kind of.
        name: Of the row.
        bundle: With features as an output.
        degree: Of it.
        refit: Whether a head is fitted again on its features too.
    """

    kind: str
    name: str
    bundle: Bundle
    degree: int
    refit: bool

    @property
    def macs(self) -> int:
        return self.bundle.degrees[self.degree].macs

    def features(self, part: str, cells: Sequence[Cell], threads: int) -> Features:
        """Return features [cells, channels] of a part of the cells, computed once; ``views`` are other views."""
        made_of = sha256_file(self.bundle.path / "bundle.json")[:8]
        path = FOLDER / f"{part}-{len(cells)}-{self.name.replace(' ', '-').replace(',', '')}-{made_of}.npy"
        if path.exists():
            return np.load(path)
        print(path.stem, file=sys.stderr, flush=True)
        found = []
        with Runtime.open(self.bundle.path, degrees=[self.degree], threads=threads, warm=False) as runtime:
            runtime.warm_up(expect_profile=False)
            for index, cell in enumerate(cells):
                picture = Image.open(cell.path)
                seen = other_view(picture, index) if part == "views" else picture
                image = preprocess(seen, self.bundle.manifest["input"])
                found.append(runtime.infer(image[None]).outputs["features"])
        with atomic_path(path) as beside, beside.open("wb") as file:
            np.save(file, np.concatenate(found))
        return np.concatenate(found)


def other_view(picture: Image.Image, seed: int) -> Image.Image:
    """Return a cell as if photographed again: turned, shifted and exposed a little differently."""
    draw = random.Random(seed)
    turned = picture.convert("L").rotate(draw.uniform(-0.5, 0.5), Image.Resampling.BICUBIC)
    side = round(min(turned.size) * draw.uniform(0.98, 1.0))
    left, top = (draw.randint(0, length - side) for length in turned.size)
    return ImageEnhance.Brightness(turned.crop((left, top, left + side, top + side))).enhance(draw.uniform(0.97, 1.03))


def ways(folder: Path, model: VisionTransformer) -> list[Way]:
    """Return every way, dense first; the bundles that the quickstart has not are written."""
    plain, compensated = Bundle(folder / "bundle-without-compensator"), Bundle(folder / "bundle")
    found = [Way("dense", "dense", plain, 0, refit=True)]
    found += [Way("merge", f"merge, degree {degree}", plain, degree, refit=False) for degree in DEGREES]
    found += [
        Way("merge with compensator", f"merge with compensator, degree {degree}", compensated, degree, refit=True)
        for degree in DEGREES
    ]
    pruned = _bundle("prune", model, degrees=DEGREES, method="prune")
    found += [Way("prune", f"prune, degree {degree}", pruned, degree, refit=False) for degree in DEGREES]
    for side in SIDES:
        twin = copy.deepcopy(model)
        twin.set_input_size(img_size=(side, side))  # positions interpolated by timm
        twin.pretrained_cfg = {**twin.pretrained_cfg, "input_size": (3, side, side)}
        small = _bundle(str(side), twin, degrees=[0])
        found.append(Way("smaller image", f"dense, {side} pixels", small, 0, refit=True))
    return found


def _bundle(name: str, model: VisionTransformer, **options: Any) -> Bundle:
    path = FOLDER / f"bundle-{name}"
    return Bundle(path) if path.exists() else export(model, path, features=True, check=False, **options)


def difference(values: NDArray[Any], dense: NDArray[Any], draws: int = 4000, seed: int = 0) -> Figure:
    """Return the mean difference of what the same cells gave, with a paired bootstrap's 95 % interval."""
    each = np.asarray(values, np.float64) - np.asarray(dense, np.float64)
    counts = np.random.default_rng(seed).multinomial(len(each), np.full(len(each), 1 / len(each)), draws)
    low, high = np.quantile(counts @ each / len(each), (0.025, 0.975))
    return {"value": float(each.mean()), "low": float(low), "high": float(high)}


def classify(head: nn.Linear, features: Features, labels: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Return per cell whether the head is right, and its log-loss."""
    logarithms = head(torch.from_numpy(features)).detach().double().log_softmax(-1).numpy()
    return logarithms.argmax(-1) == labels, -logarithms[np.arange(len(labels)), labels]


def ranks(queries: Features, gallery: Features) -> NDArray[np.int64]:
    """Return the rank of each query's own cell, 1 the nearest: query ``i`` is of the gallery's cell ``i``."""
    queries, gallery = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (queries, gallery))
    scores = queries @ gallery.T
    return 1 + (scores > scores[np.arange(len(queries)), np.arange(len(queries))][:, None]).sum(axis=1)


def searched(found: NDArray[np.int64], dense: NDArray[np.int64]) -> dict[str, Any]:
    """Return recall at 1 and 5 and the mean reciprocal rank, with the differences to dense queries."""
    return {
        "recall_1": share(found == 1),
        "recall_5": share(found <= 5),
        "mean_reciprocal_rank": float((1 / found).mean()),
        "recall_1_difference": difference(found == 1, dense == 1),
        "reciprocal_rank_difference": difference(1 / found, 1 / dense),
    }


def row(
    way: Way, head: nn.Linear, refit: nn.Linear | None, tested: Features, views: Features, dense: dict[str, Any]
) -> dict[str, Any]:
    """Return what a way is worth; of ``dense``: its features, what was right, its losses, and the views' ranks."""
    labels = dense["labels"]
    right, losses = classify(head, tested, labels)
    figures = {
        "kind": way.kind,
        "way": way.name,
        "macs": way.macs,
        "accuracy": share(right),
        "difference_to_dense": difference(right, dense["right"]),
        "log_loss": float(losses.mean()),
        "log_loss_difference": difference(losses, dense["losses"]),
        "gap": abs(float(feature_gaps(dense["features"], tested).mean())),
        "found": found_again(tested, dense["features"], dense["features"][:0]),
        "search": searched(ranks(views, dense["features"]), dense["ranks"]),
        "refitted": None,
    }
    if refit is not None:
        again, _ = classify(refit, tested, labels)
        figures["refitted"] = {"accuracy": share(again), "difference_to_dense": difference(again, dense["right"])}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="What make quickstart wrote.")
    parser.add_argument("--queries", type=int, default=600, help="Other views that are searched for.")
    parser.add_argument("--threads", type=int, default=2, help="Of one inference.")
    parser.add_argument("--out", type=Path, default=RESULTS / "accuracy_against_cost.json")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    parts = json.loads((options.folder / "figures.json").read_text(encoding="utf-8"))["cells"]
    split = split_cells(parts["train"], parts["held_out"], parts["test"], parts["seed"])
    cells = [*split.test, *split.rest]
    model = load_model(BACKBONE, weights=options.folder / "model.safetensors", image_size=IMAGE_SIZE).model
    answered: dict[str, NDArray[np.bool_]] = {}
    rows, dense = [], {"labels": np.array([cell.label for cell in cells])}
    for way in ways(options.folder, model):
        tested = way.features("tested", cells, options.threads)
        views = way.features("views", cells[: options.queries], options.threads)
        refit = None
        if way.refit and way.kind != "dense":  # the dense model's own head is fitted that way
            again = torch.from_numpy(way.features("train", split.train, options.threads))
            refit = fit_head(again, [cell.label for cell in split.train])
        if not rows:
            dense["right"], dense["losses"] = classify(model.head, tested, dense["labels"])
            dense |= {"features": tested, "ranks": ranks(views, tested)}
        rows.append(row(way, model.head, refit, tested, views, dense))
        answered[way.name], _ = classify(model.head, tested, dense["labels"])
        accuracy, recall = rows[-1]["accuracy"]["value"], rows[-1]["search"]["recall_1"]["value"]
        print(f"{way.name}: accuracy {accuracy:.1%}, recall {recall:.1%}", flush=True)
    write_json(
        options.out,
        {
            "machine": machine(),
            "cells": len(cells),
            "queries": options.queries,
            "rows": rows,
            # The way that costs as much as degree 20.
            "against_a_smaller_image": {
                way: difference(answered[way], answered[f"dense, {SIDES[0]} pixels"])
                for way in answered
                if way.startswith("merge with")
            },
        },
    )
    print(f"wrote {options.out}; the page: python benchmarks/compare_page.py")


if __name__ == "__main__":
    main()

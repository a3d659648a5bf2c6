"""Accuracy over cost on the quickstart's task, of every cheap way to run its one model.

    make quickstart
    python benchmarks/accuracy_against_cost.py quickstart-output      # about six minutes on two idle cores

Merging with the compensator, merging without, pruning without (the compensator was trained for merging), and the dense
model on a smaller image with its head fitted again on the same training cells: the cheapest alternative that needs no
other weights. All ways see the same test cells, so their differences to the dense model are paired; the interval is a
bootstrap's over cells. Writes ``benchmarks/results/accuracy_against_cost.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, machine
from timm.models.vision_transformer import VisionTransformer

from tocom import Compensator, compress, load_model
from tocom.calibration import wilson_interval
from tocom.compression.features import pooled_features
from tocom.compression.loading.preprocessing import input_config
from tocom.compression.macs import count_macs
from tocom.quickstart.cells import Cell, split_cells
from tocom.quickstart.head import fit_head
from tocom.quickstart.weights import BACKBONE, IMAGE_SIZE
from tocom.system.files import write_json
from tocom.training.image_files import ImageFiles


def right_answers(model: VisionTransformer, cells: Sequence[Cell], batch: int = 8) -> np.ndarray:
    """Return per cell whether the model's class is the cell's, [count] bool."""
    files = ImageFiles([cell.path for cell in cells], input_config(model))
    found = []
    with torch.inference_mode():
        for first in range(0, len(cells), batch):
            images = torch.stack([files[index] for index in range(first, min(first + batch, len(cells)))])
            found.append(model(images).argmax(-1).numpy())
    return np.concatenate(found) == np.array([cell.label for cell in cells])


def smaller_image(model: VisionTransformer, side: int, train: Sequence[Cell]) -> VisionTransformer:
    """Return the dense model for a smaller image: positions interpolated by timm, the head fitted again."""
    twin = copy.deepcopy(model)
    twin.set_input_size(img_size=(side, side))
    twin.pretrained_cfg = {**twin.pretrained_cfg, "input_size": (3, side, side)}
    inputs = pooled_features(twin, ImageFiles([cell.path for cell in train], input_config(twin)))
    twin.head.load_state_dict(fit_head(inputs, [cell.label for cell in train]).state_dict())
    return twin


def difference(right: np.ndarray, dense: np.ndarray, draws: int = 4000, seed: int = 0) -> dict[str, float]:
    """Return the difference of two accuracies on the same cells, with a paired bootstrap's 95 % interval."""
    each = right.astype(float) - dense
    places = np.random.default_rng(seed).integers(0, len(each), (draws, len(each)))
    low, high = np.quantile(each[places].mean(1), (0.025, 0.975))
    return {"value": float(each.mean()), "low": float(low), "high": float(high)}


def measure(
    model: VisionTransformer,
    compensator: Compensator,
    degrees: Sequence[int],
    sides: Sequence[int],
    train: Sequence[Cell],
    test: Sequence[Cell],
) -> list[dict[str, Any]]:
    """Return one row per way to run the model."""
    dense = right_answers(model, test)
    depth = len(model.blocks)
    ways: list[tuple[str, str, Any, int]] = [("dense", "dense", model, count_macs(model, (0,) * depth))]
    for degree in degrees:
        merged = compress(model, degree)
        for kind, network, method in (
            ("merge with compensator", compress(model, degree, compensator=compensator), "merge"),
            ("merge", merged, "merge"),
            ("prune", compress(model, degree, method="prune"), "prune"),
        ):
            macs = count_macs(model, merged.blocks.removed, method=method)
            ways.append((kind, f"{kind}, degree {degree}", network, macs))
    for side in sides:
        twin = smaller_image(model, side, train)
        ways.append(("smaller image", f"dense, {side} pixels", twin, count_macs(twin, (0,) * depth)))
    rows = []
    for kind, way, network, macs in ways:
        right = right_answers(network, test)
        low, high = wilson_interval(int(right.sum()), len(right))
        rows.append(
            {
                "kind": kind,
                "way": way,
                "macs": macs,
                "accuracy": {"value": float(right.mean()), "low": low, "high": high},
                "difference_to_dense": difference(right, dense),
            }
        )
        print(f"{way}: {right.mean():.1%}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="What make quickstart wrote.")
    parser.add_argument("--sides", default="112,140,168,196", help="Smaller images, pixels.")
    parser.add_argument("--out", type=Path, default=RESULTS / "accuracy_against_cost.json")
    options = parser.parse_args()
    figures = json.loads((options.folder / "figures.json").read_text(encoding="utf-8"))
    cells = figures["cells"]
    split = split_cells(cells["train"], cells["held_out"], cells["test"], cells["seed"])
    model = load_model(BACKBONE, weights=options.folder / "model.safetensors", image_size=IMAGE_SIZE).model
    compensator = Compensator.load(options.folder / "compensator.safetensors")
    degrees = [row["degree"] for row in figures["degrees"] if row["degree"]]
    sides = [int(side) for side in options.sides.split(",")]
    rows = measure(model, compensator, degrees, sides, split.train, split.test)
    write_json(options.out, {"machine": machine(), "cells": len(split.test), "rows": rows})
    print(f"wrote {options.out}; the page: python benchmarks/compare_page.py")


if __name__ == "__main__":
    main()

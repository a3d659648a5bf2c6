"""Train with a GPU's budget what two cores cannot: the mix, features of patches, compensators of both families.

    python benchmarks/gpu_training.py --views           # once: every image as the model reads it, in build/views
    python benchmarks/gpu_training.py [--only NAME …] [--steps N] [--together 12]
    python benchmarks/gpu_training.py --collect         # of all runs: benchmarks/results/gpu-training-<gpu>.json

Each run is a process of its own, several share the GPU; each measures its compensator on the test images before it
ends: the share of the feature gap to the dense model that is closed, in float32. Images and recipes are
``results_train.py``'s, with more steps and a larger batch. ``--device cpu --steps 2`` rehearses.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import results_train
import torch
import torch.nn.functional as F
from domains import DOMAINS, test_views, training_views
from measuring import RESULTS, machine
from results_train import SEEDS, backbone
from saliency import patch_gaps
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from tocom import compress
from tocom.compression.features import patch_features, pooled
from tocom.compression.loading.preprocessing import input_config
from tocom.export.engines.backend import find_device
from tocom.formats.families import EVERY
from tocom.system.files import write_json
from tocom.training.config import TrainingConfig
from tocom.training.trainer import train

ROOT = Path(__file__).resolve().parents[1]
VIEWS, FOLDER = ROOT / "build" / "views", ROOT / "build" / "gpu-training"
SPACED = "spaced:1,4,7,10"
TARGETS = (8, 12, 16, 20)
CELLS = ("cells", "other cells")
PICTURES = ("photographs", "other photographs")
MIX = results_train.RECIPES["mix"]
UNSEEN = "unseen cells"  # the quickstart's other cells, for compensators that learn from its 700 alone


@dataclass(frozen=True)
class Recipe:
    """What a compensator learns from, how, and what it is measured on: kinds of test images."""

    domains: tuple[str, ...]
    config: TrainingConfig
    tests: tuple[str, ...] = DOMAINS


_GPU = replace(MIX.config, steps=320, batch_size=32, learning_rate=1e-3)
_PATCH = replace(_GPU, loss="patch", hidden=0.0, relative=False)
_CELLS = replace(_PATCH, steps=450)
_FAMILY = replace(_GPU, rank=2, relative=False, batch_size=16, learning_rate=5e-4)
RECIPES = {
    "photographs-rank16": Recipe(PICTURES, replace(_GPU, rank=16)),
    "patch-rank16": Recipe((*CELLS, *PICTURES), replace(_PATCH, rank=16)),
    "patch": Recipe((*CELLS, *PICTURES), _PATCH),
    "patch-cells": Recipe(CELLS, _CELLS, ("cells",)),
    "patch-cells-fast": Recipe(CELLS, replace(_CELLS, learning_rate=3e-3), ("cells",)),
    "patch-cells-hidden": Recipe(CELLS, replace(_CELLS, hidden=1.0), ("cells",)),
    "patch-cells-relative": Recipe(CELLS, replace(_CELLS, relative=True), ("cells",)),
    **{f"mix-seed{seed}": Recipe(MIX.domains, replace(_GPU, seed=seed)) for seed in SEEDS},
    **{
        f"family-{name}-seed{seed}": Recipe(("cells",), replace(_FAMILY, family=family, seed=seed), (UNSEEN,))
        for seed in SEEDS
        for name, family in (("every", EVERY), ("spaced", SPACED))
    },
}


class Kept(Dataset[Tensor]):
    """Images that were kept as the model reads them."""

    def __init__(self, name: str) -> None:
        self.pixels = np.load(VIEWS / f"{name}.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(self.pixels[index]))


def keep_views() -> None:
    """Compute every view once, on all cores."""
    entry = input_config(backbone())
    VIEWS.mkdir(parents=True, exist_ok=True)
    named = {domain: training_views(domain, entry) for domain in MIX.domains}
    named |= {f"test {domain}": test_views(domain, entry) for domain in DOMAINS}
    with ThreadPoolExecutor() as pool:
        for name, views in named.items():
            found = list(pool.map(views.__getitem__, range(len(views))))
            np.save(VIEWS / f"{name}.npy", torch.stack(found).numpy())
            print(f"{name}: {len(found)}", flush=True)


def tests(name: str, device: str) -> Tensor:
    """Return test images of a kind."""
    return torch.stack(list(Kept("other cells" if name == UNSEEN else f"test {name}"))).to(device)


def gaps(model: Any, images: Tensor, dense: Tensor, *, patches: bool) -> dict[str, float]:
    """Return the mean of one minus cosine to the dense features; of patches also the least that shared rows allow."""
    found = features(model, images, patches=patches)
    if patches:
        return patch_gaps(found.cpu(), dense.cpu())
    return {"gap": float((1 - F.cosine_similarity(found, dense, dim=-1)).double().mean())}


@torch.no_grad()
def features(model: Any, images: Tensor, *, patches: bool) -> Tensor:
    """Return pooled features [images, channels], or those of patches [images, patches, channels], float32."""
    return torch.cat([(patch_features if patches else pooled)(model, part).float() for part in images.split(32)])


def run(name: str, steps: int | None, device: str) -> None:
    """Train and measure one compensator."""
    recipe = RECIPES[name]
    config = replace(recipe.config, steps=steps or recipe.config.steps)
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = backbone().to(device)
    images = ConcatDataset([Kept(domain) for domain in recipe.domains])
    begin = time.perf_counter()
    compensator = train(
        model,
        images,
        config,
        progress=lambda step: step.step % 100 or print(f"{name}: {step.step}, {step.seconds:.0f} s", flush=True),
    )
    seconds = time.perf_counter() - begin
    compensator.save(FOLDER / f"{name}.safetensors")
    patches = config.loss == "patch"
    rows = []
    for kind in recipe.tests:
        pictures = tests(kind, device)
        dense = features(model, pictures, patches=patches)
        for target in TARGETS:
            without = gaps(compress(model, target, family=config.family), pictures, dense, patches=patches)
            with_it = gaps(compress(model, target, compensator=compensator), pictures, dense, patches=patches)
            row = {"kind": kind, "images": len(pictures), "target": target, "without": without, "with": with_it}
            rows.append({**row, "closed": 1 - next(iter(with_it.values())) / next(iter(without.values()))})
            print(f"{name} {kind} {target}: closed {rows[-1]['closed']:.3f} {with_it}", flush=True)
    written = {"recipe": name, "domains": recipe.domains, "images": len(images), "training": asdict(config)}
    write_json(FOLDER / f"{name}.json", {**written, "seconds": seconds, "rows": rows})


def run_together(names: Sequence[str], arguments: Sequence[str], together: int) -> int:
    """Run each recipe in a process of its own, so many at a time; return how many failed."""
    waiting, running, failed = list(names), [], 0
    while waiting or running:
        while waiting and len(running) < together:
            command = [sys.executable, __file__, "--one", waiting.pop(0), *arguments]
            running.append(subprocess.Popen(command))
        for process in [each for each in running if each.poll() is not None]:
            failed += process.returncode != 0
            running.remove(process)
        time.sleep(0.1)
    return failed


def collect() -> int:
    """Write one result of all runs that are there."""
    device = find_device()
    if device is None:
        print("The result is named after an NVIDIA GPU, and none is found.", file=sys.stderr)
        return 1
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    result = {"gpu": device.slug, "machine": machine(), "runs": runs}
    write_json(RESULTS / f"gpu-training-{device.slug}.json", result)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", action="store_true")
    parser.add_argument("--collect", action="store_true")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--one", choices=RECIPES, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help="of every run")
    parser.add_argument("--together", type=int, default=12, help="runs at a time")
    parser.add_argument("--device", default="cuda")
    chosen = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if chosen.one:
        run(chosen.one, chosen.steps, chosen.device)
        return 0
    if chosen.views:
        keep_views()
        return 0
    if chosen.collect:
        return collect()
    steps = ["--steps", str(chosen.steps)] if chosen.steps else []
    return 1 if run_together(chosen.only, [*steps, "--device", chosen.device], chosen.together) else 0


if __name__ == "__main__":
    sys.exit(main())

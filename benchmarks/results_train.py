"""Train what the results page measures: compensators of several recipes and seeds, and whole fine-tunes.

    python benchmarks/results_train.py [--only NAME …] [--steps N]      # 20,000 steps of about a second each

Writes ``build/results/``: one ``<recipe>-seed<N>.safetensors`` per compensator and one ``fine-tuned-…safetensors`` per
model. What is there is kept; a run that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from domains import DOMAINS, quickstart_cells, training_views
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from tocom import compress
from tocom.compensator.tensor_file import save_tensors
from tocom.compression.features import pooled, pooled_features
from tocom.compression.loading.preprocessing import input_config
from tocom.quickstart.cells import LABELS
from tocom.quickstart.head import fit_head
from tocom.quickstart.weights import BACKBONE, IMAGE_SIZE, read_backbone
from tocom.training.config import TrainingConfig
from tocom.training.trainer import train

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "results"
SEEDS = (0, 1, 2)
SOURCES = (0, 16)


@dataclass(frozen=True)
class Recipe:
    """What a compensator learns from.

    Attributes:
        domains: Kinds of images, 700 of each; of the ``other`` kinds 1,584 each.
        config: How.
        seeds: How often.
    """

    domains: tuple[str, ...]
    config: TrainingConfig
    seeds: tuple[int, ...] = SEEDS


_CONFIG = TrainingConfig(
    groups=20,
    hidden=1.0,
    relative=True,
    steps=600,
    batch_size=4,
    precision="bf16",
    learning_rate=5e-4,
    source_degree=0,
    far_targets=True,
)
_EVERY_CELL = ("cells", "other cells")
_EVERYTHING = (*DOMAINS, *(f"other {domain}" for domain in DOMAINS))
RECIPES = {
    "cells": Recipe(_EVERY_CELL, dataclasses.replace(_CONFIG, rank=4, steps=2000)),
    "mix": Recipe(_EVERYTHING, dataclasses.replace(_CONFIG, rank=4)),
    "cells-prune": Recipe(_EVERY_CELL, dataclasses.replace(_CONFIG, rank=4, method="prune", steps=1500)),
    # What the higher rank, and more cells and steps, are compared with.
    "cells-rank2": Recipe(_EVERY_CELL, dataclasses.replace(_CONFIG, steps=2000), seeds=(0,)),
    "mix-700": Recipe(DOMAINS, _CONFIG),
    "cells-700": Recipe(("cells",), dataclasses.replace(_CONFIG, steps=1200)),
    # What the relative loss is compared with: the plain mean, on the mix at the better of three rates.
    "cells-plain": Recipe(("cells",), dataclasses.replace(_CONFIG, relative=False, steps=1200), seeds=(0,)),
    "mix-plain": Recipe(DOMAINS, dataclasses.replace(_CONFIG, relative=False, learning_rate=3e-4), seeds=(0,)),
}


def backbone() -> VisionTransformer:
    """Return the quickstart's pretrained ViT-S/14, without a head."""
    model = timm.create_model(BACKBONE, pretrained=False, img_size=IMAGE_SIZE, num_classes=0).eval()
    model.load_state_dict(read_backbone(), strict=True)
    return model


def compensator_path(recipe: str, seed: int) -> Path:
    return FOLDER / f"{recipe}-seed{seed}.safetensors"


def fine_tuned_path(source: int, method: str) -> Path:
    return FOLDER / (f"fine-tuned-{method}-{source}.safetensors" if source else "fine-tuned-0.safetensors")


def train_to(path: Path, model: VisionTransformer, views: Dataset[Tensor], config: TrainingConfig) -> None:
    """Train a compensator into a file; a run that was stopped goes on from its checkpoint beside it."""
    begin = time.perf_counter()
    train(
        model,
        views,
        config,
        checkpoint=path.with_suffix(".checkpoint"),
        resume=True,
        progress=lambda step: step.step % 10 or tell(path.stem, step.step, step.steps, begin),
    ).save(path)


def train_compensator(name: str, seed: int, steps: int | None) -> None:
    recipe, model = RECIPES[name], backbone()
    entry = input_config(model)
    config = dataclasses.replace(recipe.config, seed=seed, steps=steps or recipe.config.steps)
    views = ConcatDataset([training_views(domain, entry) for domain in recipe.domains])
    train_to(compensator_path(name, seed), model, views, config)


def fine_tune(source: int, method: str, epochs: int = 1, batch: int = 8, seed: int = 0) -> None:
    """Fine-tune all weights on the training cells at one degree, from the linear probe's head."""
    model, cells = backbone(), quickstart_cells().train
    views = training_views("cells", input_config(model))
    labels = torch.tensor([cell.label for cell in cells])
    head = fit_head(pooled_features(compress(model, source, method=method), views), labels.tolist())
    model.reset_classifier(len(LABELS))
    model.head.load_state_dict(head.state_dict())
    model.requires_grad_(True).train()
    # The fitted head divides by small deviations: at usual rates the first steps would undo what it has learnt.
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-6, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    path, begin, steps = fine_tuned_path(source, method), time.perf_counter(), epochs * (len(cells) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-6, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        if step % (len(cells) // batch) == 0:
            order = torch.randperm(len(cells), generator=generator)
        chosen = order[step % (len(cells) // batch) * batch :][:batch]
        images = torch.stack([views[index] for index in chosen.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            features = pooled(compress(model, source, method=method), images)
        loss = F.cross_entropy(model.head(features.float()), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 10 == 0:
            tell(f"{path.stem}, loss {loss.item():.3f}", step + 1, steps, begin)
    save_tensors(path, model.eval().state_dict(), {"labels": "\n".join(LABELS)})


def tell(what: str, step: int, steps: int, begin: float) -> None:
    print(f"{what}: step {step} of {steps}, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", help="names of files to make, without .safetensors")
    options.add_argument("--steps", type=int, help="optimizer steps of every compensator")
    options.add_argument("--threads", type=int, help="of torch")
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    FOLDER.mkdir(parents=True, exist_ok=True)
    work = {
        compensator_path(name, seed): (train_compensator, name, seed, chosen.steps)
        for name, recipe in RECIPES.items()
        for seed in recipe.seeds
    }
    work |= {
        fine_tuned_path(source, method): (fine_tune, source, method)
        for source in SOURCES
        for method in ("merge", "prune")
    }
    for path, (make, *arguments) in work.items():
        if not path.exists() and (chosen.only is None or path.stem in chosen.only):
            make(*arguments)


if __name__ == "__main__":
    main()

"""Train a small model on random images; print each step, write the weights. Run by tests, alone or under torchrun.

Usage: training_worker.py OUT CHECKPOINT STEPS [name=value ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from small_vits import small_images, small_vit

from tocom.training.config import TrainingConfig
from tocom.training.distributed import Processes, joined
from tocom.training.trainer import StepReport, train

CONFIG = {"groups": 6, "batch_size": 4, "flip": True, "seed": 5, "learning_rate": 2e-3}


def show(report: StepReport) -> None:
    """Print what has to be the same however often the run is killed."""
    print(json.dumps([report.step, report.source, report.target, report.loss]), flush=True)


def main(out: str, checkpoint: str, steps: str, *options: str) -> None:
    torch.set_num_threads(1)
    model = small_vit(depth=2)
    images = list(small_images(model, 11))
    config = TrainingConfig(
        **{**CONFIG, **{k: json.loads(v) for k, v in (o.split("=") for o in options)}}, steps=int(steps)
    )
    with joined(torch.device("cpu")):
        compensator = train(
            model, images, config, checkpoint=checkpoint, checkpoint_every=3, resume=True, progress=show
        )
        if Processes.current().first:
            compensator.save(Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])

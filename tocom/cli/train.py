"""``tocom train``: a compensator for a backbone, from images without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tocom.cli import output, print_json, steps

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(train)


def train(
    model: Annotated[str, typer.Option(help="timm model name.")],
    images: Annotated[Path, typer.Option(help="Folder of images; subfolders are searched, labels ignored.")],
    out: Annotated[Path, typer.Option(help="Compensator to write (.safetensors).")],
    weights: Annotated[str, typer.Option(help="Checkpoint file, or 'pretrained' (timm's hub).")] = "pretrained",
    num_classes: Annotated[int | None, typer.Option(help="Classes of the head; default: the checkpoint's.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the image in pixels; default: the model's.")] = None,
    groups: Annotated[int, typer.Option(help="Degrees 0 to this many will be within reach.")] = 16,
    rank: Annotated[int, typer.Option(help="Rank of each degree step.")] = 2,
    method: Annotated[str, typer.Option(help="'merge' or 'prune'.")] = "merge",
    loss: Annotated[str, typer.Option(help="'kl', 'cosine', 'mse', or 'auto'.")] = "auto",
    step_count: Annotated[int, typer.Option("--steps", help="Optimizer steps.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 5e-4,
    source_degree: Annotated[
        int | None, typer.Option(help="Keep the source degree at this; default: draw both, as the paper does.")
    ] = None,
    flip: Annotated[bool, typer.Option(help="Mirror half of the images.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of weights, images and degrees.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the compensator's metadata as JSON.")] = False,
) -> None:
    """Train a compensator by self-distillation: no labels, the backbone stays frozen."""
    from tocom.data import ImageFiles
    from tocom.files import check_writable
    from tocom.models import input_config, load_model
    from tocom.training import TrainingConfig
    from tocom.training import train as run

    config = TrainingConfig(
        groups=groups,
        rank=rank,
        method=method,
        loss=loss,
        steps=step_count,
        batch_size=batch_size,
        learning_rate=learning_rate,
        source_degree=source_degree,
        flip=flip,
        seed=seed,
    )
    loaded = load_model(model, weights=weights, num_classes=num_classes, image_size=image_size)
    files = ImageFiles(images, input_config(loaded.model))
    check_writable(out.parent)
    with steps() as progress:
        compensator = run(
            loaded.model, files, config, progress=lambda step: progress("training", step.step, step.steps)
        )
    compensator.save(out)
    if as_json:
        print_json(compensator.describe())
    else:
        output.print(f"compensator {out}: degrees 0 to {groups}, {method}", highlight=False, soft_wrap=True)

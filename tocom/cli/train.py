"""``tocom train``: a compensator for a backbone, from images without labels."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tocom.cli.app import console, output, print_json
from tocom.cli.model_options import ModelOptions, with_option_groups
from tocom.cli.options import Device, MergeBlocks, Method, Spacing, asked_family, one_of
from tocom.cli.progress import steps

__all__ = ["train"]


@with_option_groups
def train(
    images: Annotated[Path, typer.Option(help="Folder of images; subfolders are searched, labels ignored.")],
    out: Annotated[Path, typer.Option(help="Compensator to write (.safetensors).")],
    source: ModelOptions,
    weights: Annotated[str, typer.Option(help="Checkpoint file, or 'pretrained' (timm's hub).")] = "pretrained",
    groups: Annotated[int, typer.Option(help="Degrees 0 to this many will be within reach.")] = 16,
    rank: Annotated[int, typer.Option(help="Rank of each degree step.")] = 2,
    method: Method = "merge",
    merge_blocks: MergeBlocks = None,
    every: Spacing = None,
    loss: Annotated[str, typer.Option(help="'kl', 'cosine', 'mse', 'patch', or 'auto'.")] = "auto",
    hidden: Annotated[
        float, typer.Option(help="Weight of a second loss, between the class tokens behind every block.")
    ] = 0.0,
    relative: Annotated[
        bool, typer.Option(help="Count every image by the share of its gap that is closed: for mixed kinds of images.")
    ] = False,
    step_count: Annotated[int, typer.Option("--steps", help="Optimizer steps.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Images per step, over all processes.")] = 8,
    accumulation: Annotated[int, typer.Option(help="Parts to compute a batch in; saves memory.")] = 1,
    precision: Annotated[str, typer.Option(help="'fp32', 'bf16' or 'fp16', by autocast.")] = "fp32",
    activation_checkpointing: Annotated[
        bool, typer.Option(help="Save memory: compute activations again in the backward pass.")
    ] = False,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 5e-4,
    source_degree: Annotated[
        int | None, typer.Option(help="Keep the source degree at this; default: draw both, as the paper does.")
    ] = None,
    far_targets: Annotated[
        bool, typer.Option(help="Of two drawn targets take the farther: closes more of the gap in short runs.")
    ] = False,
    flip: Annotated[bool, typer.Option(help="Mirror half of the images.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of weights, images, degrees and dropout.")] = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="File to keep the state of the run in.")] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 100,
    resume: Annotated[bool, typer.Option(help="Go on from --checkpoint where that file is there.")] = False,
    unreadable: Annotated[
        str, one_of("Images that cannot be read: 'skip' (and count) or 'fail'.", "skip", "fail")
    ] = "skip",
    workers: Annotated[int, typer.Option(help="Processes that read images; 0 reads between steps.")] = 0,
    scalars: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's event files.")] = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the compensator's metadata as JSON.")] = False,
) -> None:
    """Train a compensator by self-distillation: no labels, the backbone stays frozen.

    On several processes: torchrun --nproc-per-node 2 --no-python tocom train …
    """
    from tocom.formats.families import EVERY
    from tocom.images import image_files
    from tocom.system.files import check_writable
    from tocom.system.progress import silent
    from tocom.training.config import TrainingConfig
    from tocom.training.distributed import choose_device, joined
    from tocom.training.image_files import ImageFiles
    from tocom.training.trainer import train as run

    family = asked_family(merge_blocks, every)
    config = TrainingConfig(
        groups=groups,
        rank=rank,
        method=method,
        loss=loss,
        hidden=hidden,
        relative=relative,
        steps=step_count,
        batch_size=batch_size,
        accumulation=accumulation,
        precision=precision,
        activation_checkpointing=activation_checkpointing,
        learning_rate=learning_rate,
        source_degree=source_degree,
        far_targets=far_targets,
        flip=flip,
        seed=seed,
    )
    check_writable(out.parent)
    torch_device = choose_device(device)
    paths = image_files(images)
    loaded = source.load(weights)
    config = replace(config, family=family(len(loaded.model.blocks)) or EVERY)
    files = ImageFiles(paths, loaded.input_entry)
    with (
        joined(torch_device) as processes,
        steps(log_every_s=10) if processes.first else contextlib.nullcontext(silent) as progress,
    ):
        compensator = run(
            loaded.model.to(torch_device),
            files,
            config,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            resume=resume,
            skip_unreadable=unreadable == "skip",
            workers=workers,
            scalars=scalars,
            progress=lambda step: progress(
                "training", step.step, step.steps, f", loss {step.loss:.4g}, {step.images_per_second:.1f} images/s"
            ),
        )
        if not processes.first:
            return
        compensator.save(out)
    if as_json:
        print_json(compensator.describe())
        return
    output.print(f"compensator {out}: degrees 0 to {groups}, {method}, {config.family}", soft_wrap=True)
    passed = int(compensator.metadata["unreadable_images"])
    if passed:
        console.print(f"{passed} of {len(files)} images could not be read and were passed over")

"""``tocom align``: unlabelled images become a map of features per degree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tocom.cli.alignment_table import alignment_table
from tocom.cli.app import show
from tocom.cli.model_options import ModelOptions, with_model_options
from tocom.cli.options import CheckFolder, MergeBlocks, Spacing, parse_degrees, parse_family
from tocom.cli.progress import steps

__all__ = ["align"]


@with_model_options
def align(
    images: Annotated[Path, typer.Option(help="Folder of images; subfolders are searched, labels ignored.")],
    degrees: Annotated[str, typer.Option(help="Target degrees: 4,8,16 or first:last:step.")],
    out: Annotated[Path, typer.Option(help="Alignment to write (.safetensors).")],
    source: ModelOptions,
    weights: Annotated[str, typer.Option(help="Checkpoint file, or 'pretrained' (timm's hub).")] = "pretrained",
    check: CheckFolder = None,
    compensator: Annotated[Path | None, typer.Option(help="Compensator that the degrees run with.")] = None,
    scale: Annotated[float | None, typer.Option(help="Scale of the compensator; default: the file's.")] = None,
    source_degree: Annotated[int, typer.Option(help="Degree that the model was fine-tuned at.")] = 0,
    method: Annotated[str, typer.Option(help="'merge' or 'prune'.")] = "merge",
    merge_blocks: MergeBlocks = None,
    every: Spacing = None,
    fuse: Annotated[bool, typer.Option(help="With prune: fuse the removed tokens into one.")] = False,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the fifths that are held out.")] = 0,
    device: Annotated[str, typer.Option(help="'auto', 'cpu' or 'cuda'.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fit a map of the features of each degree to those of the source degree: 50 images or more, no labels."""
    from tocom.compensator.compensator import Compensator
    from tocom.system.files import check_writable
    from tocom.training.align import align as run
    from tocom.training.distributed import choose_device
    from tocom.training.image_files import ImageFiles

    wanted = parse_degrees(degrees)
    check_writable(out.parent)
    torch_device = choose_device(device)
    loaded = source.load(weights)
    files = ImageFiles(images, loaded.input_entry)
    with steps() as progress:
        found = run(
            loaded.model.to(torch_device),
            files,
            degrees=wanted,
            check=None if check is None else ImageFiles(check, loaded.input_entry),
            compensator=None if compensator is None else Compensator.load(compensator),
            scale=scale,
            source_degree=source_degree,
            method=method,
            family=parse_family(merge_blocks, every, len(loaded.model.blocks)),
            fuse=fuse,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    found.save(out)
    show(found.describe() if as_json else alignment_table(str(out), found.images, found.checked_on, found.maps))

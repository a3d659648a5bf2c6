"""``tocom align``: unlabelled images become a map of features per degree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tocom.cli.alignment_table import alignment_table
from tocom.cli.app import show
from tocom.cli.model_options import CompressionOptions, ModelOptions, with_option_groups
from tocom.cli.options import CheckFolder, Degrees, Device
from tocom.cli.progress import steps

__all__ = ["align"]


@with_option_groups
def align(
    images: Annotated[Path, typer.Option(help="Folder of images; subfolders are searched, labels ignored.")],
    degrees: Degrees,
    out: Annotated[Path, typer.Option(help="Alignment to write (.safetensors).")],
    source: ModelOptions,
    way: CompressionOptions,
    weights: Annotated[str, typer.Option(help="Checkpoint file, or 'pretrained' (timm's hub).")] = "pretrained",
    check: CheckFolder = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the fifths that are held out.")] = 0,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fit a map of the features of each degree to those of the source degree: 50 images or more, no labels."""
    from tocom.images import image_files
    from tocom.system.files import check_writable
    from tocom.training.align import align as run
    from tocom.training.distributed import choose_device
    from tocom.training.image_files import ImageFiles

    check_writable(out.parent)
    torch_device = choose_device(device)
    paths, others = image_files(images), None if check is None else image_files(check)
    along = way.read()
    loaded = source.load(weights)
    with steps() as progress:
        found = run(
            loaded.model.to(torch_device),
            ImageFiles(paths, loaded.input_entry),
            degrees=degrees,
            check=None if others is None else ImageFiles(others, loaded.input_entry),
            **along(loaded),
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    found.save(out)
    show(found.describe() if as_json else alignment_table(str(out), found.images, found.checked_on, found.maps))

"""``tocom pack``: a bundle becomes what another server loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tocom.cli.app import console, print_json, table_of
from tocom.cli.options import SomeDegrees, TrustedKeys, one_of, trusted_bundle
from tocom.cli.progress import steps

__all__ = ["pack"]


def pack(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    layout: Annotated[str, one_of("'triton': a model repository of NVIDIA Triton Inference Server.", "triton")],
    out: Annotated[Path, typer.Option(help="Folder to write the repository to.")],
    backend: Annotated[
        str, typer.Option(help="What serves: 'tensorrt' (engines), 'onnxruntime', or 'auto': engines if there are any.")
    ] = "auto",
    engines: Annotated[
        Path | None, typer.Option(help="Folder of engines, where the bundle has some for several devices.")
    ] = None,
    degrees: SomeDegrees = None,
    name: Annotated[str | None, typer.Option(help="What the models' names begin with; default: the model's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder.")] = False,
    trusted_key: TrustedKeys = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the repository's models as JSON.")] = False,
) -> None:
    """Write a model repository: one model per degree; the caller picks, by budget or otherwise."""
    from tocom.export.triton.repository import write_triton_repository

    with steps() as progress:
        repository = write_triton_repository(
            trusted_bundle(bundle, trusted_key),
            out,
            backend=backend,
            engines=engines,
            degrees=degrees,
            name=name,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print_json(repository.to_json())
        return
    columns = ("degree", "model", "backend", "most images")
    rows = [(degree, each.name, each.backend, each.batch[2]) for degree, each in repository.models.items()]
    console.print(table_of(columns, rows, title="how to start the server: README.md", left=columns))
    typer.echo(str(repository.path))

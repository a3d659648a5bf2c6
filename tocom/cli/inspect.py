"""``tocom inspect``: what is in a bundle, a compensator or a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tocom.cli.app import output, show
from tocom.cli.model_options import describe_input
from tocom.errors import RequestError

__all__ = ["inspect"]


def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle's folder, a compensator (.safetensors) or a profile (.json).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show what is in a bundle (every file checked against the manifest), a compensator or a profile."""
    if path.is_dir():
        from tocom.cli.export import bundle_table
        from tocom.formats.bundle import Bundle

        bundle = Bundle(path)
        show(bundle.manifest if as_json else bundle_table(bundle))
        if not as_json:
            entry = bundle.manifest["input"]
            for line in describe_input(entry, entry.get("sources", {})):
                output.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    if not path.exists():
        raise RequestError(
            f"The 'path' argument must be a bundle, a compensator, an alignment or a profile. {path} does not exist."
        )
    if path.suffix == ".safetensors":
        from tocom.alignment.alignment import Alignment, is_alignment
        from tocom.compensator.compensator import Compensator

        facts: dict[str, Any] = (Alignment if is_alignment(path) else Compensator).load(path).describe()
    elif path.suffix == ".json":
        from tocom.formats.device_alignment import ALIGNMENTS_FOLDER, DeviceAlignment
        from tocom.formats.profile import Profile

        is_aligned = path.resolve().parent.name == ALIGNMENTS_FOLDER
        facts = DeviceAlignment.load(path)[0].describe() if is_aligned else Profile.load(path).to_json()
    else:
        raise RequestError(f"The 'path' argument must be a folder, a .safetensors or a .json file. Got {path} instead.")
    table = Table(title=str(path), show_header=False)
    for key, value in facts.items():
        table.add_row(key, str(value))
    show(facts if as_json else table)

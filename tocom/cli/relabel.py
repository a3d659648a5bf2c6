"""``tocom relabel``: other names for a bundle's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tocom.cli.app import output, print_json
from tocom.cli.model_options import read_labels

__all__ = ["relabel"]


def relabel(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    labels: Annotated[Path, typer.Option(help="Class names: text with one per line, or JSON.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the labels as JSON.")] = False,
) -> None:
    """Give a bundle's classes other names, without another export; engines and latencies stay valid."""
    from tocom.formats.relabelling import relabel as run

    names = run(bundle, read_labels(labels)).labels or []
    if as_json:
        print_json({"labels": names})
    else:
        output.print(f"{bundle}: {len(names)} labels", markup=False, highlight=False, soft_wrap=True)

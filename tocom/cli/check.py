"""``tocom check``: the reference answers of a bundle, on every backend that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from tocom.cli.app import console, output, print_json, table_of
from tocom.cli.options import SomeDegrees, Threads
from tocom.cli.progress import steps
from tocom.errors import EngineError

if TYPE_CHECKING:
    from tocom.calibration.agreement.check import BackendAgreement

__all__ = ["check"]

_MOST_IMAGES = 64


def check(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    backend: Annotated[
        list[str] | None, typer.Option(help="Backend to check; repeat for more. Default: all that are installed.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help=f"Other images, the first {_MOST_IMAGES} of a folder: ONNX Runtime's answers are compared with."
        ),
    ] = None,
    degrees: SomeDegrees = None,
    threads: Threads = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it, as PNG.")] = None,
    polygraphy: Annotated[
        Path | None, typer.Option(help="Folder for the references as inputs and outputs for 'polygraphy run'.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Compare every degree with the bundle's reference answers, on all backends at once; exit 1 where one is wrong."""
    from tocom.calibration.agreement.check import check as run
    from tocom.calibration.agreement.picture import draw_agreement
    from tocom.calibration.agreement.polygraphy import write_polygraphy
    from tocom.formats.bundle import Bundle

    opened = Bundle(bundle, verify=False)
    others = None
    if images is not None:
        import numpy as np

        from tocom.images import image_files, read_image

        paths = image_files(images)[:_MOST_IMAGES]
        others = np.stack([read_image(path, opened.manifest["input"]) for path in paths])
    with steps() as progress:
        found = run(
            opened,
            backend or None,
            degrees=degrees,
            images=others,
            threads=threads,
            progress=progress,
        )
    if picture is not None:
        source = "the reference answers" if images is None else "ONNX Runtime's answers"
        draw_agreement(found, f"{opened.model_name}, {opened.precision}: against {source}", picture)
    if polygraphy is not None:
        write_polygraphy(opened, polygraphy)
    wrong = [(each, row) for each in found for row in each.degrees if not row.is_right]
    if as_json:
        print_json({"bundle": str(bundle), "right": not wrong, "backends": [each.to_json() for each in found]})
    else:
        output.print(_table(opened.path, found))
        for each in found:
            if each.missing:
                console.print(f"not {each.name}: {each.missing}", style="dim")
    if wrong:
        each, row = wrong[0]
        raise EngineError(
            f"{each.name} {each.version} answers wrongly at degree {row.degree} of {bundle}"
            + (f" ({row.found})" if row.found else "")
            + (f", and {len(wrong) - 1} more of the table" if len(wrong) > 1 else "")
            + ". The runtime does not serve it."
        )


def _table(path: Path, found: list[BackendAgreement]) -> Table:
    rows = []
    for each in found:
        for row in each.degrees:
            verdict = Text("right", "green") if row.is_right else Text("wrong", "red")
            cells: Sequence[str | Text] = ("", "", "", "", "", Text.assemble(verdict, f": {row.found}"))
            if (measured := row.agreement) is not None:
                differences = f"{measured.difference:.2g}", f"{measured.allowed:.2g}", f"{measured.cosine:.6f}"
                cells = (*differences, f"{measured.same_top:.0%}", str(measured.images), verdict)
            rows.append((f"{each.name} {each.version}", row.degree, *cells))
    columns = ("backend", "degree", "largest difference", "allowed", "cosine", "same top class", "images", "")
    return table_of(columns, rows, title=f"{path}: against the reference answers", left=("backend", ""))

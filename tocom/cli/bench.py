"""``tocom bench``: latency and throughput of every degree, or of the policy within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tocom.cli.app import show, table_of
from tocom.cli.options import BackendName, SomeDegrees, Threads, TimeoutS, TrustedKeys
from tocom.cli.progress import steps

__all__ = ["bench"]


def bench(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    degrees: SomeDegrees = None,
    budget_ms: Annotated[
        float | None, typer.Option(help="Let the policy choose within this budget, instead of each degree in turn.")
    ] = None,
    duration: Annotated[float, typer.Option(help="Seconds per degree.")] = 3.0,
    warmup: Annotated[float, typer.Option(help="Seconds before them, not counted.")] = 0.2,
    batch: Annotated[int, typer.Option(help="Images per request.")] = 1,
    concurrency: Annotated[int, typer.Option(help="Threads that send requests; more than one makes them queue.")] = 1,
    backend: BackendName = "auto",
    threads: Threads = None,
    timeout_s: TimeoutS = None,
    trusted_key: TrustedKeys = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Measure latency and throughput. Degrees follow each other: to compare them finely, use calibrate."""
    from tocom.calibration.latency.throughput import bench as measure
    from tocom.calibration.latency.throughput import check_load
    from tocom.runtime import Runtime
    from tocom.runtime.checks import check_budget

    if budget_ms is not None:
        check_budget(budget_ms)
    check_load(duration, warmup, concurrency)
    with (
        Runtime.open(
            bundle,
            backend,
            degrees=degrees,
            threads=threads,
            timeout_s=timeout_s,
            trusted_keys=trusted_key,
        ) as runtime,
        steps() as progress,
    ):
        targets: list[int | None] = list(runtime.degrees) if budget_ms is None else [None]
        rows = []
        for index, degree in enumerate(targets):
            progress("policy" if degree is None else f"degree {degree}", index, len(targets))
            figures = measure(
                runtime,
                degree=degree,
                budget_ms=budget_ms,
                duration_s=duration,
                warmup_s=warmup,
                batch=batch,
                concurrency=concurrency,
            )
            rows.append({"degree": degree, **figures})
        report = {
            "model": runtime.bundle.model_name,
            "weights": runtime.bundle.manifest["model"].get("weights"),
            "backend": runtime.backend.name,
            "device": dict(runtime.backend.device),
            "threads": runtime.backend.threads,
            "precision": runtime.bundle.precision,
            "interval": "total: call to answer, images in host memory; queue: waiting for its turn; compute: the rest",
            "results": rows,
        }
    show(report if as_json else _table(report))


def _table(report: dict[str, Any]) -> Table:
    # Timing with random weights is sound, an accuracy with them is not: say so wherever figures stand.
    weights = ", random weights" if report["weights"] == "random" else ""
    setting = f"{report['backend']}, {report['precision']}, {report['threads']} threads"
    columns = ("degree", "requests", "images/s", "median ms", "p90 ms", "p95 ms", "p99 ms", "queue p95 ms", "misses")
    rows = []
    for row in report["results"]:
        taken = ", ".join(f"{degree}: {count}" for degree, count in row["degrees"].items())
        rows.append(
            (
                taken if row["degree"] is None else row["degree"],
                row["requests"],
                f"{row['images_per_second']:.1f}",
                *(f"{row['total_ms'][name]:.2f}" for name in ("median", "p90", "p95", "p99")),
                f"{row['queue_ms']['p95']:.2f}",
                "–" if row["budget_ms"] is None else row["misses"],
            )
        )
    return table_of(columns, rows, title=f"{report['model']}{weights}, {setting}")

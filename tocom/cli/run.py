"""``tocom run``: images through the runtime within a budget."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tocom.cli import print_json
from tocom.errors import RequestError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(run)


def run(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    images: Annotated[Path, typer.Option(help="A folder of images, or one image.")],
    budget_ms: Annotated[
        float | None, typer.Option(help="Milliseconds that each answer may take; default: no limit.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Feed images at this rate; without --budget-ms the budget is 1000/fps.")
    ] = None,
    backend: Annotated[str, typer.Option(help="Backend to run on.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of one inference; default: physical cores.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print answers and summary as JSON.")] = False,
) -> None:
    """Answer every image with the most accurate degree that meets the budget."""
    from tocom.images import image_files, read_image
    from tocom.runtime import Runtime
    from tocom.runtime.checks import check_budget

    if budget_ms is not None:
        check_budget(budget_ms)
    if fps is not None and not 0 < fps < float("inf"):
        raise RequestError(f"The '--fps' option must be a number greater than 0. Got {fps!r} instead.")
    if budget_ms is None and fps is not None:
        budget_ms = 1000.0 / fps
    paths = image_files(images)
    rows: list[dict[str, Any]] = []
    with Runtime.open(bundle, backend, threads=threads) as runtime:
        entry = runtime.bundle.manifest["input"]
        begin = time.perf_counter()
        for index, path in enumerate(paths):
            pixels = read_image(path, entry)[None]
            if fps is not None:
                time.sleep(max(begin + index / fps - time.perf_counter(), 0.0))
            result = runtime.infer(pixels, budget_ms)
            row = {
                "image": str(path),
                **_answer(result.outputs, runtime.bundle.labels),
                "degree": result.degree,
                "latency_ms": round(result.latency_ms, 3),
                "met_budget": result.met_budget,
            }
            rows.append(row)
            if not as_json:
                _print_row(row)
        chosen = {"backend": runtime.backend.name, "why": runtime.backend.reason}
    summary = {**_summary(rows, budget_ms), **chosen}
    if as_json:
        print_json({"answers": rows, "summary": summary})
    else:
        Console().print(_table(summary))


def _answer(outputs: dict[str, Any], labels: list[str] | None) -> dict[str, Any]:
    if "logits" not in outputs:
        return {"class": None, "label": None, "probability": None}
    import numpy as np

    logits = outputs["logits"][0].astype(np.float64)
    weights = np.exp(logits - logits.max())
    index = int(logits.argmax())
    label = labels[index] if labels is not None and index < len(labels) else None
    return {"class": index, "label": label, "probability": round(float(weights[index] / weights.sum()), 4)}


def _print_row(row: dict[str, Any]) -> None:
    name = "features" if row["class"] is None else row["label"] or f"class {row['class']}"
    share = "" if row["probability"] is None else f" {row['probability']:.3f}"
    missed = "" if row["met_budget"] else "  over budget"
    typer.echo(f"{row['image']}: {name}{share}  degree {row['degree']}  {row['latency_ms']:.2f} ms{missed}")


def _summary(rows: list[dict[str, Any]], budget_ms: float | None) -> dict[str, Any]:
    import numpy as np

    latencies = np.array([row["latency_ms"] for row in rows])
    p50, p95 = (round(float(q), 3) for q in np.quantile(latencies, (0.5, 0.95)))
    return {
        "images": len(rows),
        "budget_ms": budget_ms,
        "degrees": {str(degree): count for degree, count in sorted(Counter(row["degree"] for row in rows).items())},
        "p50_ms": p50,
        "p95_ms": p95,
        "met_budget": round(sum(row["met_budget"] for row in rows) / len(rows), 4),
    }


def _table(summary: dict[str, Any]) -> Table:
    table = Table("images", "budget ms", "degrees taken", "p50 ms", "p95 ms", "met budget", "backend")
    budget = "none" if summary["budget_ms"] is None else f"{summary['budget_ms']:.2f}"
    degrees = ", ".join(f"{degree}: {count}" for degree, count in summary["degrees"].items())
    table.add_row(
        str(summary["images"]),
        budget,
        degrees,
        f"{summary['p50_ms']:.2f}",
        f"{summary['p95_ms']:.2f}",
        f"{summary['met_budget']:.1%}",
        summary["backend"],
    )
    return table

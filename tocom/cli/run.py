"""``tocom run``: images, a video or a camera through the runtime within a budget."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from tocom.cli.app import console, output, print_json
from tocom.cli.options import BackendName, TimeoutS, TrustedKeys, parse_seconds
from tocom.errors import DataError, RequestError

if TYPE_CHECKING:
    from tocom.runtime import Result, Runtime

__all__ = ["register"]

_SPARKS = "▁▂▃▄▅▆▇█"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(run)


def run(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    images: Annotated[Path | None, typer.Option(help="A folder of images, or one image.")] = None,
    video: Annotated[
        str | None, typer.Option(help="A video file, a stream's address, or a camera's number. Needs opencv-python.")
    ] = None,
    budget_ms: Annotated[
        float | None, typer.Option(help="Milliseconds that each answer may take; default: no limit.")
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            help="Feed images at this rate as a camera does: the newest waits, older ones drop. Budget: 1/fps."
        ),
    ] = None,
    backend: BackendName = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of one inference; default: physical cores.")] = None,
    memory_limit_mib: Annotated[
        int | None, typer.Option(help="Most memory of the engines; the most useful degrees within it are kept.")
    ] = None,
    timeout_s: TimeoutS = None,
    trusted_key: TrustedKeys = None,
    live: Annotated[
        bool, typer.Option("--live", help="Show budget, degree, latency and misses while running.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print answers and summary as JSON.")] = False,
) -> None:
    """Answer every image with the most accurate degree that meets the budget."""
    from tocom.runtime import Runtime
    from tocom.runtime.checks import check_budget

    if (images is None) == (video is None):
        raise RequestError("Give either --images or --video, and not both.")
    if budget_ms is not None:
        check_budget(budget_ms)
    if fps is not None and not 0 < fps < float("inf"):
        raise RequestError(f"The '--fps' option must be a number greater than 0. Got {fps!r} instead.")
    if budget_ms is None and fps is not None:
        budget_ms = 1000.0 / fps
    limit = None if memory_limit_mib is None else memory_limit_mib << 20
    limit_s = "auto" if timeout_s is None else parse_seconds(timeout_s)
    rows: list[dict[str, Any]] = []
    show: Callable[[dict[str, Any]], None] = (lambda row: None) if as_json else _print_row
    # Names are listed, and a bad folder is told, before the engines are loaded.
    source = _video(video) if images is None else _folder(images)
    with Runtime.open(
        bundle,
        backend,
        threads=threads,
        memory_limit_bytes=limit,
        timeout_s=limit_s,
        trusted_keys=trusted_key or None,
    ) as runtime:
        answers = _answers(runtime, source, budget_ms, fps, as_camera=fps is not None or video is not None)
        with _View(budget_ms, enabled=live and not as_json) as view:
            for name, result, dropped in answers:
                rows.append(_row(name, result, runtime.bundle.labels))
                view.add(result, dropped)
                show(rows[-1])
        stats = runtime.stats()
        summary = {
            **_summary(rows, budget_ms),
            "dropped": stats["frames_dropped"],
            "backend": runtime.backend.name,
            "why": runtime.backend.reason,
            "refused_degrees": {
                degree: found["found"] for degree, found in stats["answers_checked"].items() if not found["right"]
            },
        }
    if as_json:
        print_json({"answers": rows, "summary": summary})
    else:
        output.print(_table(summary))


Source = Iterator[tuple[str, Any]]
"""Names, each with what reads the image as the model's input."""


def _folder(images: Path) -> Source:
    from tocom.images import image_files, read_image

    paths = image_files(images)
    return ((str(path), lambda entry, path=path: read_image(path, entry)) for path in paths)


def _without_secrets(address: str) -> str:
    """Return a stream's address as it may be shown: cameras take name and password before the host or in the query."""
    if "://" not in address:
        return address
    return re.sub(r"[?#].*", "?…", re.sub(r"//.*@", "//…@", address))


def _video(address: str | None) -> Source:
    try:
        import cv2
    except ImportError as error:
        raise RequestError("--video needs the package opencv-python. Install it: pip install opencv-python.") from error
    from PIL import Image

    from tocom.images import preprocess

    source: Any = int(address) if address is not None and address.isdigit() else address
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        shown = _without_secrets(str(address))
        raise DataError(f"Cannot open the video {shown!r}. Give a file, a stream's address, or a camera's number.")

    def frames() -> Source:
        index = 0
        try:
            while True:
                read, pixels = capture.read()
                if not read:
                    return
                image = Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
                yield f"frame {index}", lambda entry, image=image: preprocess(image, entry)
                index += 1
        finally:
            capture.release()

    return frames()


def _answers(
    runtime: Runtime, source: Source, budget_ms: float | None, fps: float | None, *, as_camera: bool
) -> Iterator[tuple[str, Result, int]]:
    """Yield the name, the result and the frames dropped so far."""
    entry = runtime.bundle.manifest["input"]
    if not as_camera:
        for name, read in source:
            yield name, runtime.infer(read(entry)[None], budget_ms), 0
        return
    names: dict[int, str] = {}

    def frames() -> Iterator[Any]:
        for index, (name, read) in enumerate(source):
            names[index] = name
            yield read(entry)[None]

    for frame in runtime.stream(frames(), fps=fps, budget_ms=budget_ms):
        yield names[frame.index], frame.result, frame.dropped


class _View:
    """A live table of the last requests, on stderr."""

    def __init__(self, budget_ms: float | None, *, enabled: bool) -> None:
        self._budget_ms = budget_ms
        self._live = Live(console=console, refresh_per_second=8) if enabled else None
        self._latency: deque[float] = deque(maxlen=48)
        self._misses = self._count = 0

    def __enter__(self) -> _View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def add(self, result: Result, dropped: int) -> None:
        if self._live is None:
            return
        self._count += 1
        self._misses += not result.met_budget
        self._latency.append(result.latency_ms)
        top = max(*self._latency, self._budget_ms or 0.0, 1e-9)
        sparks = "".join(_SPARKS[min(int(ms / top * len(_SPARKS)), len(_SPARKS) - 1)] for ms in self._latency)
        table = Table("budget ms", "degree", "latency ms", "misses", "dropped", "recent latency")
        budget = "none" if self._budget_ms is None else f"{self._budget_ms:.1f}"
        misses = f"{self._misses} of {self._count}"
        table.add_row(budget, str(result.degree), f"{result.latency_ms:.2f}", misses, str(dropped), sparks)
        self._live.update(table)


def _row(name: str, result: Result, labels: list[str] | None) -> dict[str, Any]:
    return {
        "image": name,
        **_answer(result.outputs, labels),
        "degree": result.degree,
        "latency_ms": round(result.latency_ms, 3),
        "met_budget": result.met_budget,
    }


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

    if not rows:
        raise DataError("The source gave no image.")
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
    table = Table("images", "dropped", "budget ms", "degrees taken", "p50 ms", "p95 ms", "met budget", "backend")
    budget = "none" if summary["budget_ms"] is None else f"{summary['budget_ms']:.2f}"
    table.add_row(
        str(summary["images"]),
        str(summary["dropped"]),
        budget,
        ", ".join(f"{degree}: {count}" for degree, count in summary["degrees"].items()),
        f"{summary['p50_ms']:.2f}",
        f"{summary['p95_ms']:.2f}",
        f"{summary['met_budget']:.1%}",
        summary["backend"],
    )
    refused = summary["refused_degrees"]
    if refused:
        table.caption = "not served, because it answers wrongly: " + "; ".join(
            f"degree {degree} ({found})" for degree, found in refused.items()
        )
    return table

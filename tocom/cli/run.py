"""``tocom run``: images, videos or cameras through the runtime within a budget."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tocom.cli.answers import AnswerFile, Row, Summary, row_of, text_of
from tocom.cli.app import console, output, show
from tocom.cli.live import LiveView
from tocom.cli.options import BackendName, Threads, TimeoutS, TrustedKeys
from tocom.cli.sources import Source, folder_source, video_source
from tocom.errors import DataError, RequestError

if TYPE_CHECKING:
    from tocom.runtime import Result, Runtime

__all__ = ["run"]

# Columns from which on the summary fits in one line.
_WIDE = 96


def run(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    images: Annotated[Path | None, typer.Option(help="A folder of images, or one image.")] = None,
    video: Annotated[
        list[str] | None,
        typer.Option(
            help="A video file, a stream's address, or a camera's number; repeatable. Of a file every frame "
            "is answered unless --fps is given. Needs opencv-python."
        ),
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
    degree: Annotated[int | None, typer.Option(help="Run this degree whatever the budget.")] = None,
    topk: Annotated[int, typer.Option(help="Classes to show of each image, the most probable first.")] = 1,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Images that cannot be read do not make the command fail.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write every answer as it comes to this .csv or .jsonl file.")
    ] = None,
    backend: BackendName = "auto",
    threads: Threads = None,
    memory_limit_mib: Annotated[
        int | None, typer.Option(help="Most memory of the engines; the most useful degrees within it are kept.")
    ] = None,
    goal: Annotated[
        str,
        typer.Option(help="'accuracy', or 'energy': the least energy within --max-loss, by a profile that has both."),
    ] = "accuracy",
    max_loss: Annotated[
        float | None, typer.Option(help="With --goal energy: points of accuracy that it may cost.")
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

    if (images is None) == (not video):
        raise RequestError("Give either --images or --video, and not both.")
    if budget_ms is not None:
        budget_ms = None if check_budget(budget_ms) == float("inf") else budget_ms
    if fps is not None and not 0 < fps < float("inf"):
        raise RequestError(f"The '--fps' option must be a number greater than 0. Got {fps!r} instead.")
    if topk < 1:
        raise RequestError(f"The '--topk' option must be an integer >= 1. Got {topk!r} instead.")
    if budget_ms is None and fps is not None:
        budget_ms = 1000.0 / fps
    # Names are listed, and a bad folder is reported, before the engines are loaded.
    sources = [folder_source(images)] if images is not None else _videos(video or [])
    rows: list[Row] = []
    with (
        nullcontext() if out is None else closing(AnswerFile(out)) as file,
        Runtime.open(
            bundle,
            backend,
            threads=threads,
            memory_limit_bytes=None if memory_limit_mib is None else memory_limit_mib << 20,
            goal=goal,
            max_loss=None if max_loss is None else max_loss / 100,
            timeout_s=timeout_s,
            trusted_keys=trusted_key,
        ) as runtime,
    ):
        summary = Summary(budget_ms)
        names = [source.name for source in sources]
        try:
            view = LiveView(names, budget_ms, console=console, enabled=live and not as_json)
            with view.shown:
                for source, name, answer, dropped in _answers(runtime, sources, budget_ms, fps, degree):
                    if isinstance(answer, DataError):
                        row = {"source": source, "image": name, "error": str(answer)}
                    else:
                        row = row_of(source, name, answer, topk)
                        view.add(source, answer, dropped)
                    summary.add(row)
                    if file is not None:
                        file.write(row)
                    if as_json:
                        rows.append(row)
                    elif view.is_shown and sys.stdout.isatty():
                        view.say(text_of(row))
                    else:
                        typer.echo(text_of(row))
        finally:
            # Of a camera, Ctrl-C is the only end: what was answered is shown all the same.
            _conclude(runtime, summary, rows, as_json=as_json)
    if not summary.answered and not summary.failed:
        raise DataError("The source gave no image.")
    if summary.failed and not (skip_unreadable and summary.answered):
        raise DataError(
            f"{summary.failed} of {summary.failed + summary.answered} images could not be read, first: {summary.first}"
            + (" Others are answered; --skip-unreadable makes that enough." if summary.answered else "")
        )


def _videos(addresses: Sequence[str]) -> list[Source]:
    if len(set(addresses)) < len(addresses):
        raise RequestError(f"Each --video must be another one. Got {', '.join(addresses)}.")
    return [video_source(address, shown_in_names=len(addresses) > 1) for address in addresses]


def _answers(
    runtime: Runtime, sources: Sequence[Source], budget_ms: float | None, fps: float | None, degree: int | None
) -> Iterator[tuple[str, str, Result | DataError, int]]:
    """Yield the source's name, the image's, the result or why there is none, and the frames dropped so far."""
    if fps is None and not any(source.is_camera for source in sources):
        for source in sources:
            for name, image in source.items:
                try:
                    pixels = runtime.preprocess(image, order="bgr")  # OpenCV's, which a file does not ask for
                    yield source.name, name, runtime.infer(pixels, budget_ms, degree=degree), 0
                except DataError as error:
                    yield source.name, name, error, 0
        return
    names: dict[str, dict[int, str]] = {source.name: {} for source in sources}

    def frames(source: Source) -> Iterator[Any]:
        for index, (name, image) in enumerate(source.items):
            names[source.name][index] = name
            yield image

    # A file that runs beside cameras runs at its own rate.
    rates = {source.name: rate for source in sources if (rate := fps or source.fps) is not None}
    streams = runtime.streams(
        {source.name: frames(source) for source in sources},
        fps=rates,
        budget_ms=None if budget_ms is None else dict.fromkeys((source.name for source in sources), budget_ms),
        degree=degree,
        order="bgr",
    )
    for frame in streams:
        own = names[frame.source]
        name = own[frame.index]
        for index in list(own):  # those dropped before it too, or days of a camera would fill the memory
            if index <= frame.index:
                del own[index]
        yield frame.source, name, frame.result, frame.dropped


def _conclude(runtime: Runtime, summary: Summary, rows: Sequence[Row], *, as_json: bool) -> None:
    stats = runtime.stats()
    content = {
        **summary.content(),
        "dropped": stats["frames_dropped"],
        "backend": runtime.backend.name,
        "why": runtime.backend.reason,
        "refused_degrees": {
            degree: found["found"] for degree, found in stats["answers_checked"].items() if not found["right"]
        },
    }
    if not summary.answered:
        return
    show({"answers": rows, "summary": content} if as_json else _table(content, output.width))


def _table(summary: Row, width: int) -> Table:
    budget = "none" if summary["budget_ms"] is None else f"{summary['budget_ms']:.2f}"
    facts = {
        "images": str(summary["images"]),
        "dropped": str(summary["dropped"]),
        "budget ms": budget,
        "degrees taken": ", ".join(f"{degree}: {count}" for degree, count in summary["degrees"].items()),
        "p50 ms": f"{summary['p50_ms']:.2f}",
        "p95 ms": f"{summary['p95_ms']:.2f}",
        "met budget": f"{summary['met_budget']:.1%}",
        "backend": summary["backend"],
    }
    if width >= _WIDE:
        table = Table(*facts)
        table.add_row(*facts.values())
    else:
        table = Table(show_header=False)
        for fact in facts.items():
            table.add_row(*fact)
    if refused := summary["refused_degrees"]:
        table.caption = "not served, because it answers wrongly: " + "; ".join(
            f"degree {degree} ({found})" for degree, found in refused.items()
        )
    return table

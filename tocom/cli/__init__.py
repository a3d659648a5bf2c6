"""The command line: one module per verb, each with ``register(app)``."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tocom import __version__
from tocom.errors import RequestError, TocomError

__all__ = [
    "BackendName",
    "TimeoutS",
    "TrustedKeys",
    "app",
    "console",
    "main",
    "output",
    "parse_batch",
    "parse_degrees",
    "parse_seconds",
    "print_json",
    "steps",
]

app = typer.Typer(
    name="tocom",
    help="Vision Transformers on the edge: one engine per token-compression degree, within a latency budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Progress and errors go to stderr; stdout carries results alone, wide enough for tables where it is no terminal.
console = Console(stderr=True)
output = Console(width=None if sys.stdout.isatty() else 120)

TrustedKeys = Annotated[
    list[Path] | None,
    typer.Option("--trusted-key", help="A public key; repeatable. Refuse what none of them signed."),
]

BackendName = Annotated[
    str, typer.Option(help="auto, tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime, or openvino (on the CPU).")
]

TimeoutS = Annotated[
    str | None,
    typer.Option(
        help="Seconds until a device that does not answer is given up, or 'none'; default: 60 on a GPU, none on a CPU."
    ),
]

_LOG_EVERY_S = 60.0
_INTERRUPTED = {128 + signal.SIGINT: "interrupted", 128 + signal.SIGTERM: "terminated", 128 + signal.SIGHUP: "hung up"}

VERBS = (
    "quickstart",
    "train",
    "evaluate",
    "export",
    "build",
    "plugins",
    "pack",
    "quantize",
    "calibrate",
    "run",
    "bench",
    "inspect",
    "sign",
    "verify",
    "doctor",
)


def print_json(content: Any) -> None:
    """Print ``content`` as JSON on stdout, for machines."""
    sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


def parse_degrees(text: str) -> list[int]:
    """Read ``0,4,8`` or ``first:last:step`` (last included).

    Raises:
        RequestError: It is neither.
    """
    try:
        if ":" in text:
            first, last, step = (int(part) for part in text.split(":"))
            return list(range(first, last + 1, step))
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise RequestError(
            f"The 'degrees' option must be numbers (0,4,8) or first:last:step (0:16:4). Got {text!r} instead."
        ) from error


def parse_batch(text: str) -> int | tuple[int, int, int]:
    """Read ``N`` or ``min:opt:max``.

    Raises:
        RequestError: It is neither.
    """
    try:
        sizes = [int(part) for part in text.split(":")]
        if len(sizes) == 1:
            return sizes[0]
        smallest, optimal, largest = sizes
        return smallest, optimal, largest
    except ValueError as error:
        raise RequestError(f"The 'batch' option must be N or min:opt:max (1:4:8). Got {text!r} instead.") from error


def parse_seconds(text: str) -> float | None:
    """Read a number of seconds greater than 0, or ``none``.

    Raises:
        RequestError: It is neither.
    """
    if text == "none":
        return None
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < 1e6:
            return seconds
    raise RequestError(f"The 'timeout-s' option must be a number of seconds greater than 0, or none. Got {text!r}.")


@contextlib.contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """Show progress and the time left: one moving line on a terminal; in a log a line per stage, and every minute.

    Yields:
        A function that takes what is being done, the steps done, and all steps.
    """
    begin = staged = told = time.perf_counter()
    shown = ""

    def log(what: str, done: int, total: int) -> None:
        nonlocal shown, staged, told
        now, left = time.perf_counter(), ""
        if what == shown:
            if now - told < _LOG_EVERY_S or not 0 < done < total:
                return
            left = f": {done} of {total}, about {(now - staged) / done * (total - done):.0f} s left"
        else:
            shown, staged = what, now
        told = now
        console.print(f"{now - begin:7.1f} s  {what}{left}", highlight=False, soft_wrap=True)

    if not console.is_terminal:
        yield log
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"tocom {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True)) -> None:
    del version


def main() -> None:
    """Run the command line; an error of ours is one line on stderr and exit code 1, never a traceback."""
    for verb in VERBS:
        import_module(f"tocom.cli.{verb}").register(app)
    try:
        with _cleaning_up_when_told_to_end():
            app()
    except TocomError as error:
        console.print(f"[bold red]error:[/] {type(error).__name__}: ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except MemoryError:
        console.print("[bold red]error:[/] out of memory; free some, or ask for fewer degrees or images at once")
        sys.exit(1)
    except SystemExit as end:
        if end.code in _INTERRUPTED:  # typer turns Ctrl-C into 130
            console.print(f"{_INTERRUPTED[end.code]}; nothing half-written was left behind")
        raise


@contextlib.contextmanager
def _cleaning_up_when_told_to_end() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does: as they come they end the process where it stands.

    A second one ends it at once.
    """

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        sys.exit(128 + number)

    # nohup ignores SIGHUP, and then it stays ignored.
    ours = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)

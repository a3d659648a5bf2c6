"""The command line: one module per verb, each with ``register(app)``."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from importlib import import_module

from tocom.cli.app import app, console
from tocom.errors import TocomError

__all__ = ["main"]


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
    "check",
    "calibrate",
    "run",
    "bench",
    "inspect",
    "sign",
    "verify",
    "doctor",
)


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

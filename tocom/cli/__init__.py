"""The command line: one module per verb, which holds the command under its own name."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NoReturn

from tocom.errors import TocomError
from tocom.system.dependencies import explain

__all__ = ["add_verbs", "main"]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_INTERRUPTED = {128 + signal.SIGINT: "interrupted", 128 + signal.SIGTERM: "terminated", 128 + signal.SIGHUP: "hung up"}

VERBS = (
    "quickstart",
    "train",
    "align",
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
    "relabel",
    "sign",
    "verify",
    "doctor",
)


def main() -> None:
    """Run the command line; an error of ours is one line on stderr and exit code 1, never a traceback."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller; else the first file that is opened would take its number
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdout, sys.stderr):
        # A name of any bytes, and any character, on a terminal of any encoding.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Imported here: typer and rich may be what is missing.
        app = import_module("tocom.cli.app").app
        add_verbs(app, *VERBS)
        with _unwinding_on_signals():
            app()
    except TocomError as error:
        _fail(f"{type(error).__name__}: {error}")
    except MemoryError:
        _fail("out of memory; free some, or ask for fewer degrees or images at once")
    except BrokenPipeError:
        # Whoever read the answers has gone, as head does: not to be met again when Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except SystemExit as end:
        if end.code in _INTERRUPTED:  # typer turns Ctrl-C into 130
            sys.stderr.write(f"{_INTERRUPTED[end.code]}; nothing half-written was left behind\n")
        raise
    except Exception as error:
        if explained := explain(error):
            _fail(f"{type(explained).__name__}: {explained}")
        if isinstance(error, OSError):
            where = error.filename or "the system, or where this writes to"
            todo = "Free some space there" if error.errno in _NO_SPACE else "Check that it is there"
            _fail(str(TocomError(f"{where}: {error.strerror or error}. {todo}.")))
        raise


def add_verbs(app: Any, *verbs: str) -> None:
    """Add commands to a typer application; the modules are imported."""
    for verb in verbs:
        command = getattr(import_module(f"tocom.cli.{verb}"), verb)
        if isinstance(command, type(app)):
            app.add_typer(command, name=verb)
        else:
            app.command()(command)


def _fail(message: str) -> NoReturn:
    # Written without rich, which may be what is missing.
    coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    mark = "\033[1;31merror:\033[0m" if coloured else "error:"
    sys.stderr.write(f"{mark} {message}\n")
    sys.exit(1)


@contextlib.contextmanager
def _unwinding_on_signals() -> Iterator[None]:
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

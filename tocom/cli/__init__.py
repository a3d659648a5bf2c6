"""The command line: one module per verb, each with ``register(app)``."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

import typer
from rich.console import Console

from tocom import __version__
from tocom.errors import TocomError

__all__ = ["app", "console", "main", "print_json"]

app = typer.Typer(
    name="tocom",
    help="Vision Transformers on the edge: one engine per token-compression degree, within a latency budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Tables and progress go to stderr's twin of what a pipe would read: stdout carries results alone.
console = Console(stderr=True)

VERBS = ("quickstart", "export", "calibrate", "run", "inspect", "doctor")


def print_json(content: Any) -> None:
    """Print ``content`` as JSON on stdout, for machines."""
    sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


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
        app()
    except TocomError as error:
        console.print(f"[bold red]error:[/] {type(error).__name__}: ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; nothing half-written was left behind")
        sys.exit(130)

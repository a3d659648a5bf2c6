"""The command line's application, and where it writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tocom.version import __version__

__all__ = ["app", "console", "output", "print_json", "show", "table_of"]

app = typer.Typer(
    name="tocom",
    help="Vision Transformers on the edge: one engine per token-compression degree, within a latency budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


# Progress and errors go to stderr; stdout carries results alone, wide enough for tables where it is not a terminal.
# No markup, no emoji codes: what is printed holds paths and messages, and a path may hold brackets and colons.
console = Console(stderr=True, markup=False, emoji=False, highlight=False)
output = Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False, highlight=False)


def print_json(content: Any) -> None:
    """Print ``content`` as JSON on stdout, for machines."""
    sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


def show(what: Any) -> None:
    """Print a table, or anything else as JSON, on stdout."""
    if isinstance(what, Table):
        output.print(what)
    else:
        print_json(what)


def table_of(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None, left: Collection[str] = ()
) -> Table:
    """Return a table of these rows; its columns end at the right, those named in ``left`` begin at the left."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
    return table


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"tocom {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True)) -> None:
    del version

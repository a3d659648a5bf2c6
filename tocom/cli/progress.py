"""Progress of long work, on a terminal and in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tocom.cli.app import console

__all__ = ["steps"]

_LOG_EVERY_S = 60.0


@contextlib.contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """Show progress and the time left: one moving line on a terminal; in a log a line per stage, and every minute.

    Yields:
        A function that takes what is being done, the steps done, and all steps.
    """
    begin = staged = said = time.perf_counter()
    shown = ""

    def log(what: str, done: int, total: int) -> None:
        nonlocal shown, staged, said
        now, left = time.perf_counter(), ""
        if what == shown:
            if now - said < _LOG_EVERY_S or not 0 < done < total:
                return
            left = f": {done} of {total}, about {(now - staged) / done * (total - done):.0f} s left"
        else:
            shown, staged = what, now
        said = now
        console.print(f"{now - begin:7.1f} s  {what}{left}", soft_wrap=True)

    if not console.is_terminal:
        yield log
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)

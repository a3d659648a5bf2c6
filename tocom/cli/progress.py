"""Progress of long work, on a terminal and in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

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


@contextlib.contextmanager
def steps(log_every_s: float = 60.0) -> Iterator[Callable[..., None]]:
    """Show progress and the time left: one moving line on a terminal; in a log a line per stage, and now and then.

    Args:
        log_every_s: Seconds between two lines of one stage in a log.

    Yields:
        A function that takes what is being done, the steps done, all steps, and what else there is to say of the last
        step; with that, the last step has a line of its own.
    """
    begin = staged = said = time.perf_counter()
    shown = ""

    def log(what: str, done: int, total: int, more: str = "") -> None:
        nonlocal shown, staged, said
        now, left = time.perf_counter(), ""
        if what != shown:
            shown, staged = what, now
        elif not 0 < done <= total or (done == total and not more) or (done < total and now - said < log_every_s):
            return
        else:
            left = f": {done} of {total}, about {timedelta(seconds=round((now - staged) / done * (total - done)))} left"
        said = now
        console.print(f"{now - begin:7.1f} s  {what}{left}{more}", soft_wrap=True)

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
        yield lambda what, done, total, more="": bar.update(
            task, description=f"{what}{more}", completed=done, total=total
        )

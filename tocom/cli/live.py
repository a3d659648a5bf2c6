"""The live view of ``tocom run``: three lines a source, on a terminal of any width."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from tocom.runtime import Result

__all__ = ["LiveView"]

_SPARKS, _PLAIN_SPARKS = "▁▂▃▄▅▆▇█", "_.-:=+*#"
_MOST_SPARKS = 120


class _Track:
    """What is shown of one source."""

    def __init__(self, name: str, budget_ms: float | None) -> None:
        self.name, self.budget_ms = name, budget_ms
        self.recent: deque[float] = deque(maxlen=_MOST_SPARKS)
        self.count = self.misses = self.dropped = self.degree = 0

    def add(self, result: Result, dropped: int) -> None:
        self.count += 1
        self.misses += not result.met_budget
        self.dropped, self.degree = dropped, result.degree
        self.recent.append(result.latency_ms)

    def lines(self, width: int, sparks: str, *, named: bool) -> list[str]:
        if not self.recent:
            return [f"{self.name}: waiting"] if named else ["waiting"]
        budget = "none" if self.budget_ms is None else f"{self.budget_ms:.1f} ms"
        # The newest stands right, and never falls off.
        shown = list(self.recent)[-max(width, 1) :]
        top = max(*shown, self.budget_ms or 0.0, 1e-9)
        line = "".join(sparks[min(int(ms / top * len(sparks)), len(sparks) - 1)] for ms in shown)
        facts = [f"degree {self.degree}", f"{self.recent[-1]:.2f} ms", f"budget {budget}"]
        counts = [f"{self.misses} of {self.count} missed", f"{self.dropped} dropped"]
        return [*_filled([*([self.name] if named else []), *facts, *counts], width), line]


def _filled(facts: list[str], width: int) -> list[str]:
    """Return the facts in as few lines as the width allows."""
    lines = [""]
    for fact in facts:
        longer = f"{lines[-1]}  {fact}" if lines[-1] else fact
        if len(longer) > width and lines[-1]:
            lines.append(fact)
        else:
            lines[-1] = longer
    return lines


class LiveView:
    """Lines at the foot of the terminal, above which rows scroll. Where there is no terminal, nothing is shown.

    Args:
        names: The sources.
        budget_ms: Milliseconds that each answer may take; None for no limit.
        console: The terminal.
        enabled: Show it.
    """

    def __init__(self, names: list[str], budget_ms: float | None, *, console: Console, enabled: bool) -> None:
        self._tracks = {name: _Track(name, budget_ms) for name in names}
        self._console = console
        self._live = Live(self, console=console, refresh_per_second=8) if enabled and console.is_terminal else None

    @property
    def is_shown(self) -> bool:
        """Whether the terminal's foot is taken: what is printed there must go through :meth:`say`."""
        return self._live is not None

    def say(self, line: str) -> None:
        """Print a line above the view."""
        self._console.print(line, soft_wrap=True)

    def add(self, name: str, result: Result, dropped: int) -> None:
        """Show an answer."""
        self._tracks[name].add(result, dropped)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render for rich, at the width that the terminal has now."""
        sparks = _SPARKS if options.encoding.startswith("utf") else _PLAIN_SPARKS
        for track in self._tracks.values():
            for line in track.lines(options.max_width, sparks, named=len(self._tracks) > 1):
                yield Text(line, no_wrap=True, overflow="ellipsis")

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

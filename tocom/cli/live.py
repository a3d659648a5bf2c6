"""The live view of ``tocom run``: two lines a source or more, on a terminal of any width."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
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

    def __init__(self) -> None:
        self.facts = "waiting"
        self.recent: deque[float] = deque(maxlen=_MOST_SPARKS)
        self.count = self.misses = 0

    def add(self, result: Result, dropped: int, budget: str) -> None:
        self.count += 1
        self.misses += not result.met_budget
        self.recent.append(result.latency_ms)
        self.facts = (
            f"degree {result.degree}  {result.latency_ms:.2f} ms  budget {budget}  "
            f"{self.misses} of {self.count} missed  {dropped} dropped"
        )

    def sparks(self, width: int, signs: str, budget_ms: float) -> str:
        # The newest stands right, and never falls off.
        shown = list(self.recent)[-max(width, 1) :]
        top = max(*shown, budget_ms, 1e-9)
        return "".join(signs[min(int(ms / top * len(signs)), len(signs) - 1)] for ms in shown)


class LiveView:
    """Lines at the foot of the terminal, above which rows scroll. Where there is no terminal, nothing is shown.

    Args:
        names: The sources.
        budget_ms: Milliseconds that each answer may take; None for no limit.
        console: The terminal.
        enabled: Show it.
    """

    def __init__(self, names: list[str], budget_ms: float | None, *, console: Console, enabled: bool) -> None:
        self._tracks = {name: _Track() for name in names}
        self._budget_ms, self._console = budget_ms, console
        #: Whether the terminal's foot is taken: what is printed there must go through :meth:`say`.
        self.is_shown = enabled and console.is_terminal
        #: Within this context it is shown.
        self.shown = Live(self, console=console, refresh_per_second=8) if self.is_shown else nullcontext()

    def say(self, line: str) -> None:
        """Print a line above the view."""
        self._console.print(line, soft_wrap=True)

    def add(self, name: str, result: Result, dropped: int) -> None:
        """Show an answer."""
        budget = "none" if self._budget_ms is None else f"{self._budget_ms:.1f} ms"
        self._tracks[name].add(result, dropped, budget)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render for rich, at the width that the terminal has now."""
        signs = _SPARKS if options.encoding.startswith("utf") else _PLAIN_SPARKS
        for name, track in self._tracks.items():
            yield Text(f"{name}: {track.facts}" if len(self._tracks) > 1 else track.facts)
            if track.recent:
                yield Text(track.sparks(options.max_width, signs, self._budget_ms or 0.0), no_wrap=True)

"""The load: whose answers are due when, so that no request takes the time that another one needs.

What waits is known. What comes is expected of sources that keep a rhythm, as cameras do: a thread that calls again and
again, or a stream. A request's share is the longest time that it may take if all others take as long:

- each of them must still be in time, behind those that are due before it,
- should this one take its longest, they must be in time at the fastest degree, and
- with two sources or more, all together must not ask for more time than there is.

Of one request alone the share is all that is left of its budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tocom.runtime.policy.controller import Controller

__all__ = ["Load", "Share", "Together"]

# Distance between two arrivals, relative to the usual one, up to which a source keeps its rhythm.
_REGULAR = 0.4
_ENOUGH = 3
_MOST_BEATS = 3
_RATE = 0.2
_SURER = 0.2
_MOST_SOURCES = 256
# Share of its period by which a source may be late and is still waited for.
_LATE = 0.05


@dataclass(slots=True)
class _Rhythm:
    last: float
    budget_s: float
    period_s: float = 0.0
    regular: int = 0
    seen: bool = True

    def arrive(self, now: float, budget_s: float) -> None:
        distance, self.last, self.budget_s = now - self.last, now, budget_s
        if not 0.0 < distance < inf:
            return
        periods = distance / self.period_s if self.period_s else 0.0
        if 1.5 < periods < _MOST_BEATS + 0.5:
            # A frame or two that were lost on the way leave a gap of as many periods, and the rhythm as it is.
            distance /= round(periods)
            periods /= round(periods)
        if abs(periods - 1.0) <= _REGULAR:
            self.regular += 1
            self.period_s += _RATE * (distance - self.period_s)
        else:
            self.regular, self.period_s = 0, distance

    def is_kept(self, now: float) -> bool:
        return self.regular >= _ENOUGH and now - self.last < 3.0 * self.period_s and self.budget_s < inf


class Together(tuple[Hashable, ...]):
    """Sources that ask in one request."""

    __slots__ = ()


class Share(NamedTuple):
    """What a request may take.

    Attributes:
        ms: How long.
        shared: Others wait, or are expected.
    """

    ms: float
    shared: bool


class Load:
    """Requests that wait, and the rhythm of those who ask. Times are seconds of one monotonic clock.

    :meth:`arrive` and :meth:`start` may be called by any thread; :meth:`share` by one at a time.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, float] = {}
        self._sources: dict[Hashable, _Rhythm] = {}
        self._tokens = itertools.count()

    def arrive(self, source: Hashable, now: float, deadline: float) -> int:
        """Note a request that waits from now on; return what :meth:`start` takes.

        Args:
            source: Who asks; None for one who keeps no rhythm.
            now: The request's arrival.
            deadline: When its answer is due; infinity without a budget.
        """
        if source is not None:
            rhythm = self._sources.get(source)
            if rhythm is not None and rhythm.seen:
                rhythm.arrive(now, deadline - now)
            elif rhythm is not None:
                self._sources[source] = _Rhythm(now, deadline - now, rhythm.period_s, _ENOUGH)
            else:
                if len(self._sources) >= _MOST_SOURCES:
                    self._sources.clear()
                self._sources[source] = _Rhythm(now, deadline - now)
        token = next(self._tokens)
        self._waiting[token] = deadline
        return token

    def expect(self, source: Hashable, period_s: float, budget_s: float) -> None:
        """Note that a source will ask, in this rhythm: with the first request of another one it may come at once."""
        self._sources[source] = _Rhythm(-inf, budget_s, period_s, _ENOUGH, seen=False)

    def forget(self, source: Hashable) -> None:
        """Note that a source will not ask any more."""
        self._sources.pop(source, None)

    def start(self, token: int) -> None:
        """Note that a request does not wait any more: it runs, or was dropped."""
        self._waiting.pop(token, None)

    def expected(self, now: float, until: float) -> Iterator[tuple[Hashable, float, float]]:
        """Yield each source that should ask from now on until then: its name, when it comes, when that is due."""
        for name, rhythm in list(self._sources.items()):
            arrival = rhythm.last + rhythm.period_s
            if rhythm.is_kept(now) and now - _LATE * rhythm.period_s < arrival <= until:
                arrival = max(arrival, now)
                yield name, arrival, arrival + rhythm.budget_s

    def patience(self, source: Hashable, arrival: float) -> float:
        """Return until when a source is waited for that should come at a time."""
        rhythm = self._sources.get(source)
        return arrival if rhythm is None else max(arrival, rhythm.last + (1 + _LATE) * rhythm.period_s)

    def share(
        self,
        source: Hashable,
        now: float,
        left_ms: float,
        controller: Controller,
        batch: int = 1,
        *,
        besides: Collection[int] = (),
    ) -> Share:
        """Return how long a request may take that starts now.

        Never less than the fastest degree takes; and who cannot be in time even with that takes nothing from the
        others.

        Args:
            source: Who asks; :class:`Together` where several do.
            now: The present time.
            left_ms: What is left of its budget.
            controller: Knows how long an inference takes, and how sure that is.
            batch: Images in the request.
            besides: Tokens of the request's own, which still wait.
        """
        waiting, rhythms = self._waiting, self._sources
        if not waiting and len(rhythms) < 2:
            return Share(left_ms, shared=False)
        sources = source if isinstance(source, Together) else (source,)
        tail, fastest_ms = controller.tail(), controller.fastest_ms(batch)
        others_ms = fastest_ms if len(sources) == 1 else controller.fastest_ms()
        until = now + left_ms / 1e3
        due = [deadline for token, deadline in list(waiting.items()) if deadline < inf and token not in besides]
        rate, kept = 0.0, 0
        for name, rhythm in list(rhythms.items()):
            if rhythm.last == -inf:
                # Known, and not yet seen: it may come now, and is soon given up, like one that stopped.
                rhythm.last = now - rhythm.period_s
            if not rhythm.is_kept(now):
                continue
            rate += 1.0 / rhythm.period_s
            kept += 1
            arrival = rhythm.last + rhythm.period_s
            if name not in sources and now - 0.5 * rhythm.period_s < arrival < until:
                due.append(max(arrival, now) + rhythm.budget_s)
        # Who is late makes the next one late as well: with others about, a request has to be surer to be in time.
        surer = tail / controller.tail(_SURER)
        shared = bool(due) or kept > 1
        share = left_ms * surer if shared else left_ms
        before = 1
        for deadline in sorted(due):
            slack = (deadline - now) * 1e3
            if slack >= fastest_ms + before * others_ms:
                behind = before / len(sources)
                share = min(share, slack * tail / (tail + behind), (slack - behind * others_ms) * surer)
                before += 1
        if kept > 1:
            share = min(share, len(sources) * 1e3 * tail / rate)
        return Share(max(share, min(left_ms, fastest_ms)), shared)

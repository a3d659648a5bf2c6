"""Micro-batches: how many of the requests that wait, or are about to come, are best answered in one inference."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from tocom.errors import BudgetError
from tocom.runtime.policy.controller import Controller
from tocom.runtime.policy.load import Load, Together

__all__ = ["Asking", "Plan", "plan_together"]

# Share of the time of an image that a batch at the same degree must save: less is noise, and the first answer is later.
_LEAST_SAVING = 0.05
# Share of what is left of the budget for which others are waited for.
_MOST_WAIT = 0.1


class Asking(NamedTuple):
    """A request that waits, or is expected.

    Attributes:
        source: Who asks.
        token: Its token in the load.
        due: When its answer is; infinity without a budget.
        from_s: When it can begin: now, or when it is expected.
    """

    source: Hashable
    token: int
    due: float
    from_s: float = -math.inf


class Plan(NamedTuple):
    """What to do next.

    Attributes:
        size: Requests to answer at once.
        wait_until: Wait until then for the others first, and plan again when one comes; None answers now.
    """

    size: int
    wait_until: float | None


def plan_together(waiting: Sequence[Asking], now: float, load: Load, controller: Controller, *, least: int = 1) -> Plan:
    """Return how many requests, of one image each, to answer at once: more than one where a profile says that it pays.

    A batch pays where a more accurate degree is then in time, or where the same one takes less time per image. Only
    batches are asked that were measured: what others cost is not known.

    Args:
        waiting: The requests, the most urgent first.
        now: The present time, seconds.
        load: Knows of them, and of what else is expected.
        controller: Knows what a batch costs.
        least: Smallest batch that the engines run; fewer images are filled up to it.
    """
    soon = now + _MOST_WAIT * (waiting[0].due - now)
    present = {each.source for each in waiting}
    coming = [
        Asking(name, -1, due, arrival)
        for name, arrival, due in load.expected(now, soon)
        if name not in present and soon < math.inf
    ]
    asking = [*waiting, *sorted(coming, key=lambda each: each.from_s)]
    plan, per_image_ms = Plan(1, None), math.inf
    best: tuple[bool, float] | None = None
    for count in sorted({1, *controller.batches}):
        group, size = asking[:count], max(count, least)
        if count > len(asking):
            break
        begin = max(now, *(each.from_s for each in group))
        left_ms = (min(each.due for each in group) - begin) * 1e3
        asker, tokens = Together(each.source for each in group), [each.token for each in group]
        try:
            share = load.share(asker, begin, left_ms, controller, size, besides=tokens)
            decision = controller.decide(share.ms, size, shared=share.shared)
        except BudgetError:  # not in time at any degree, and the caller wants to hear it
            continue
        value = decision.feasible, controller.accuracy(decision.degree)
        each_ms = controller.model.unit_ms(decision.degree, size) / count
        if best is None or value > best or (value == best and each_ms < (1 - _LEAST_SAVING) * per_image_ms):
            best, per_image_ms = value, each_ms
            plan = Plan(count, load.patience(group[-1].source, begin) if count > len(waiting) else None)
    return plan

"""The controller: latency model and policy over a stream of requests. No clock, no engine: both are injected."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from tocom.errors import RequestError
from tocom.formats.profile import Latency
from tocom.runtime.policy.choice import ON_INFEASIBLE, Candidate, Decision, choose, frontier
from tocom.runtime.policy.latency import LatencyModel, ModelConfig

__all__ = ["Controller", "ControllerConfig"]

# A device that takes half as long again, from one request to the next, is as much as can be prepared for.
_MOST_CARE = 0.5


@dataclass(frozen=True)
class ControllerConfig:
    """How degrees are chosen.

    Attributes:
        quantile: Quantile of the predicted latency that must meet the budget.
        hysteresis: Share by which a slower degree must beat the budget right after a switch. It shrinks to nothing
            over ``settle`` requests, so that a degree that fits is not shut out forever.
        settle: Requests after a switch until the hysteresis is gone.
        on_infeasible: ``fastest`` or ``raise``.
        probe_after: Requests in time, one after another, that leave room for a miss: then the next slower degree is
            tried, until it misses. None takes as many as the quantile allows one miss of, 20 at p95; 0 never probes.
        probe_chance: A degree is tried where it meets the budget with at least this probability.
        shared_probe_chance: The same where others need the device too: there a miss makes the next one late as well.
        care: What a miss there adds to the controller's ``care``; an answer in time takes off ``care * care_misses``.
        care_misses: Share of misses there at which the care stays what it is.
        model: How the latency model learns.
    """

    quantile: float = 0.95
    hysteresis: float = 0.03
    settle: int = 20
    on_infeasible: str = "fastest"
    probe_after: int | None = None
    probe_chance: float = 1 / 3
    shared_probe_chance: float = 0.9
    care: float = 0.05
    care_misses: float = 0.01
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("quantile", 0.5 <= self.quantile < 1, "in 0.5 … 1 (exclusive)"),
            ("hysteresis", 0 <= self.hysteresis < 1, "in 0 … 1 (exclusive)"),
            ("settle", self.settle >= 1, "an integer >= 1"),
            ("on_infeasible", self.on_infeasible in ON_INFEASIBLE, f"one of {', '.join(ON_INFEASIBLE)}"),
            ("probe_after", self.probe_after is None or self.probe_after >= 0, "an integer >= 0, or None"),
            ("probe_chance", 0 < self.probe_chance < 1, "between 0 and 1"),
            ("shared_probe_chance", 0 < self.shared_probe_chance < 1, "between 0 and 1"),
            ("care", 0 <= self.care < inf, "a number >= 0"),
            ("care_misses", 0 < self.care_misses < 1, "between 0 and 1"),
        ):
            if not valid:
                got = getattr(self, name)
                raise RequestError(f"The {name!r} parameter must be {expected}. Got {got!r} instead.")


class Controller:
    """Decides and learns. Not thread-safe: the caller holds a lock.

    Args:
        latency: The profile's latency per degree.
        accuracy: A number per degree that orders them; higher is better.
        batch: Images per request in the profile.
        config: How it decides and learns.
        batched: The latency per degree of other batch sizes that a profile was measured of.

    Attributes:
        batches: Sizes above one that a profile was measured of, ascending.
        model: The latency model, with all that was observed.
        current: Degree of the last answer that the policy chose; None before the first.
        care: Share of its predicted time that a request must have to spare where others need the device too. It
            follows what happens, not what is predicted: misses raise it, answers in time lower it. Misses of a device
            that is too slow for the fastest degree do not: no choice would have avoided them.
    """

    def __init__(
        self,
        latency: Mapping[int, Latency],
        accuracy: Mapping[int, float],
        *,
        batch: int = 1,
        config: ControllerConfig | None = None,
        batched: Mapping[int, Mapping[int, Latency]] | None = None,
    ) -> None:
        self.config = config or ControllerConfig()
        self.batches = tuple(sorted({batch, *(batched or ())} - {1}))
        self.model = LatencyModel(latency, batch=batch, config=self.config.model, batched=batched)
        self.current: int | None = None
        self.care = 0.0
        self._shared = False
        self._ran_slower = False
        self._accuracy = dict(accuracy)
        self._since_miss = 0
        self._since_switch = 0
        after = self.config.probe_after
        self._probe_after = round(1.0 / (1.0 - self.config.quantile)) if after is None else after or inf
        self._rank = self.model.rank(self.config.quantile)
        self._frontiers: dict[int, tuple[Candidate, ...]] = {}

    def decide(self, budget_ms: float, batch: int = 1, *, shared: bool = False) -> Decision:
        """Return the degree for a request.

        Args:
            budget_ms: Time that is left for it.
            batch: Images in it.
            shared: The time is its share of what others need too. Then the :attr:`care` is left to spare, as far as
                the fastest degree allows it, and no slower degree is tried while there is any.

        Raises:
            BudgetError: None meets the budget and ``on_infeasible`` is ``raise``.
        """
        config, model = self.config, self.model
        candidates = self._frontier(batch)
        factor = model.drift * model.ratios[self._rank]
        self._shared = shared
        careful = shared and self.care > 0.0
        if careful:
            budget_ms = max(budget_ms / (1.0 + self.care), min(budget_ms, candidates[-1].latency_ms * factor))
        hysteresis = config.hysteresis * (1.0 - self._since_switch / config.settle)
        decision = choose(candidates, budget_ms, factor, self.current, hysteresis, config.on_infeasible)
        may_try = decision.feasible and self._since_miss >= self._probe_after and not careful
        if may_try and decision.degree != candidates[0].degree:
            slower = next(one for one, then in itertools.pairwise(candidates) if then.degree == decision.degree)
            chance = config.shared_probe_chance if shared else config.probe_chance
            if slower.latency_ms * model.drift * model.tail(chance) <= budget_ms:
                return Decision(slower.degree, slower.latency_ms * factor, True)
        return decision

    def tail(self, misses: float = 1.0) -> float:
        """Return the policy's quantile of a latency over its median, with this share of the misses that it allows."""
        return self.model.tail(1.0 - misses * (1.0 - self.config.quantile))

    def fastest_ms(self, batch: int = 1) -> float:
        """Return the predicted latency of the fastest degree at the policy's quantile, milliseconds."""
        return self._frontier(batch)[-1].latency_ms * self.model.drift * self.tail()

    def accuracy(self, degree: int) -> float:
        """Return the number that orders the degrees by accuracy."""
        return self._accuracy[degree]

    def predict(self, degree: int, batch: int = 1) -> float:
        """Return the predicted latency of a degree at the policy's quantile, milliseconds."""
        return self.model.predict_ms(degree, self.config.quantile, batch)

    def observe(self, degree: int, compute_ms: float, met: bool, batch: int = 1, pinned: bool = False) -> None:
        """Learn from an answer.

        Args:
            degree: Degree that ran.
            compute_ms: What it took, queueing excluded.
            met: The answer met its budget.
            batch: Images in it.
            pinned: The caller chose the degree, so it says nothing about the policy's choices.
        """
        # A clock that stood still or went back measured nothing.
        if compute_ms > 0.0 and self.model.observe(degree, compute_ms, batch):
            self._frontiers.clear()
        if not pinned:
            self._since_miss = self._since_miss + 1 if met else 0
            if self._shared:
                self._follow(met, degree != self._frontier(batch)[-1].degree)
            if degree != self.current:
                self._since_switch = 0
            elif self._since_switch < self.config.settle:
                self._since_switch += 1
            self.current = degree

    def _follow(self, met: bool, slower: bool) -> None:
        """Follow with the care what came of an answer, which may have run slower than at the fastest degree."""
        self._ran_slower |= slower
        if met:
            self.care = max(self.care - self.config.care * self.config.care_misses, 0.0)
        elif self._ran_slower:  # since the last miss
            self.care = min(self.care + self.config.care, _MOST_CARE)
            self._ran_slower = False

    def state(self) -> dict[str, Any]:
        """Return what it has learned, as plain JSON content."""
        return {**self.model.state(), "care": self.care}

    def _frontier(self, batch: int) -> tuple[Candidate, ...]:
        """Return the frontier at the profile's speed; drift and tail are common to all degrees, so it outlives them."""
        found = self._frontiers.get(batch)
        if found is None:
            unit_ms = self.model.unit_ms
            found = frontier([Candidate(d, value, unit_ms(d, batch)) for d, value in self._accuracy.items()])
            self._frontiers[batch] = found
        return found

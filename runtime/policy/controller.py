"""The controller: latency model and policy over a stream of requests. No clock, no engine: both are injected."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, NamedTuple

from tocom.errors import RequestError
from tocom.formats.profile import Latency
from tocom.runtime.policy.choice import ON_INFEASIBLE, Candidate, Decision, choose, frontier
from tocom.runtime.policy.latency import LatencyModel, ModelConfig

__all__ = ["Controller", "ControllerConfig"]

_UNSURE = (0, 0.0, 0.0, Decision(0, 0.0, False))
# Decision(…) runs a Python function of its own, which is cold after an inference.
_decision = partial(tuple.__new__, Decision)


@dataclass(frozen=True)
class ControllerConfig:
    """How degrees are chosen.

    Attributes:
        quantile: Quantile of the predicted latency that must meet the budget.
        hysteresis: Share by which a slower degree must beat the budget right after a switch. It shrinks to nothing
            over ``settle`` requests, so that a degree that fits is not shut out for ever.
        settle: Requests after a switch until the hysteresis is gone.
        on_infeasible: ``fastest`` or ``raise``.
        probe_after: Requests in time, one after another, that leave room for a miss: then the next slower degree is
            tried, until it misses. None takes as many as the quantile allows one miss of, 20 at p95; 0 never probes.
        probe_chance: A degree is tried where it meets the budget with at least this probability.
        model: How the latency model learns.
    """

    quantile: float = 0.95
    hysteresis: float = 0.03
    settle: int = 20
    on_infeasible: str = "fastest"
    probe_after: int | None = None
    probe_chance: float = 1 / 3
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        if self.settle < 1:
            raise RequestError(f"The 'settle' parameter must be an integer >= 1. Got {self.settle!r} instead.")
        if self.on_infeasible not in ON_INFEASIBLE:
            raise RequestError(
                f"The 'on_infeasible' parameter must be one of {', '.join(ON_INFEASIBLE)}. "
                f"Got {self.on_infeasible!r} instead."
            )
        if not 0.5 <= self.quantile < 1:
            raise RequestError(
                f"The 'quantile' parameter must be in 0.5 … 1 (exclusive). Got {self.quantile!r} instead."
            )
        if self.probe_after is not None and self.probe_after < 0:
            raise RequestError(
                f"The 'probe_after' parameter must be an integer >= 0, or None. Got {self.probe_after!r} instead."
            )
        if not 0 < self.probe_chance < 1:
            raise RequestError(
                f"The 'probe_chance' parameter must be in 0 … 1 (exclusive). Got {self.probe_chance!r} instead."
            )
        if not 0 <= self.hysteresis < 1:
            raise RequestError(f"The 'hysteresis' parameter must be in 0 … 1 (exclusive). Got {self.hysteresis!r}.")


class Controller:
    """Decides and learns. Not thread-safe: the caller holds a lock.

    After an inference the caches are cold, and every object that is touched costs. So an observation within the noise,
    which says little, waits until some are together; until then they cannot have moved the prediction by more than
    :attr:`LatencyModel.margin`. A decision that this could change learns from them first, so decisions are those of a
    controller that never lets one wait.

    Args:
        latency: The profile's latency per degree.
        accuracy: A number per degree that orders them; higher is better.
        batch: Images per request in the profile.
        config: How it decides and learns.
    """

    def __init__(
        self,
        latency: Mapping[int, Latency],
        accuracy: Mapping[int, float],
        *,
        batch: int = 1,
        config: ControllerConfig | None = None,
    ) -> None:
        self.config = config or ControllerConfig()
        self._model = LatencyModel(latency, batch=batch, quantile=self.config.quantile, config=self.config.model)
        self.current: int | None = None
        self._accuracy = dict(accuracy)
        self._hits: deque[bool] = deque(maxlen=100)
        self._since_miss = 0
        self._since_switch = 0
        self._frontiers: dict[int, tuple[Candidate, ...]] = {}
        self._frontier_revision = -1
        after = (
            round(1.0 / (1.0 - self.config.quantile)) if self.config.probe_after is None else self.config.probe_after
        )
        self._probe_after = after or inf
        self._stay = _Stay(0, 0, -1, 0.0, None, 0.0)
        # What the next decision is for a batch and the budgets from one up to another: batch, from, to, decision.
        self._sure = _UNSURE
        # Latencies of the present degree, all in time, that are still to be learned; which may join them, and how many.
        self._waiting: list[float] = []
        self._calm_batch, self._calm_from_ms, self._calm_to_ms, self._most_waiting = 0, 0.0, 0.0, 0

    @property
    def model(self) -> LatencyModel:
        """The latency model, with all that was observed."""
        self._catch_up()
        return self._model

    def decide(self, budget_ms: float, batch: int = 1) -> Decision:
        """Return the degree for a request.

        Args:
            budget_ms: Time that is left for it.
            batch: Images in it.

        Raises:
            BudgetError: None meets the budget and ``on_infeasible`` is ``raise``.
        """
        # Mostly nothing changed: the present degree fits and the next slower one does not, so it is the answer.
        sure_batch, from_ms, to_ms, decision = self._sure
        if from_ms <= budget_ms < to_ms and batch == sure_batch and self._since_miss != self._probe_after:
            return decision
        if self._waiting:
            self._catch_up()
        config, model, stay = self.config, self._model, self._stay
        factor, hope = model.factor, self._hope()
        if (
            batch == stay.batch
            and model.revision == stay.revision
            and stay.unit_ms * factor <= budget_ms < stay.slower_unit_ms * hope
        ):
            return self._look_ahead(hope)
        candidates = self._frontier(batch)
        decision = choose(
            candidates,
            budget_ms,
            factor=factor,
            current=self.current,
            hysteresis=config.hysteresis * max(1.0 - self._since_switch / config.settle, 0.0),
            on_infeasible=config.on_infeasible,
        )
        self._stay = stay = _stay(candidates, decision.degree, batch, model.revision)
        if (
            decision.feasible
            and hope < factor
            and stay.slower_degree is not None
            and stay.slower_unit_ms * hope <= budget_ms
        ):
            return Decision(stay.slower_degree, stay.slower_unit_ms * factor, True)
        return decision

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
        if (
            self._calm_from_ms <= compute_ms < self._calm_to_ms
            and degree == self.current
            and batch == self._calm_batch
            and met
            and not pinned
        ):
            self._since_miss += 1
            self._waiting.append(compute_ms)
            if len(self._waiting) >= self._most_waiting:
                self._catch_up()
            return
        if self._waiting:
            self._catch_up()
        if compute_ms > 0.0:  # a clock that stood still or went back measured nothing
            self._model.observe(degree, compute_ms, batch)
        if not pinned:
            self._hits.append(met)
            self._since_miss = self._since_miss + 1 if met else 0
            self._since_switch = self._since_switch + 1 if degree == self.current else 0
            self.current = degree
        self._sure = _UNSURE
        self._calm_to_ms = 0.0

    def _catch_up(self) -> None:
        """Learn from what waits."""
        waiting, degree = self._waiting, self.current
        if waiting and degree is not None:
            observe, batch = self._model.observe, self._calm_batch
            for compute_ms in waiting:
                observe(degree, compute_ms, batch)
            self._hits.extend([True] * len(waiting))
            self._since_switch += len(waiting)
            waiting.clear()
            self._sure = _UNSURE
            self._calm_to_ms = 0.0

    def _hope(self) -> float:
        """Return what turns a slower degree's median into what must fit for it to run: less with room for a miss."""
        if self._since_miss < self._probe_after:
            return self._model.factor
        return self._model.drift * self._model.tail(self.config.probe_chance)

    def _look_ahead(self, hope: float) -> Decision:
        """Work out which decision is sure, and which observations may wait, until the next ones are learned."""
        model, stay = self._model, self._stay
        predicted, margin = stay.unit_ms * model.factor, model.margin
        decision: Decision = _decision((stay.degree, predicted, True))
        self._sure = stay.batch, predicted * margin, stay.slower_unit_ms * hope / margin, decision
        self._calm_batch, self._calm_from_ms, self._calm_to_ms, self._most_waiting = model.calm_ms(self.current)
        return decision

    def state(self) -> dict[str, Any]:
        """Return what it has learned, as plain JSON content."""
        learned = self.model.state()
        misses = self._hits.count(False) / len(self._hits) if self._hits else 0.0
        return {**learned, "recent_miss_share": misses}

    def _frontier(self, batch: int) -> tuple[Candidate, ...]:
        """Return the frontier at the profile's speed; drift and tail are common to all, so it outlives them."""
        if self._frontier_revision != self._model.revision:
            self._frontiers.clear()
            self._frontier_revision = self._model.revision
        found = self._frontiers.get(batch)
        if found is None:
            found = frontier(
                [Candidate(d, value, self._model.unit_ms(d, batch)) for d, value in self._accuracy.items()]
            )
            self._frontiers[batch] = found
        return found


class _Stay(NamedTuple):
    """The degree of the last decision and the next slower one, at the profile's speed."""

    degree: int
    batch: int
    revision: int
    unit_ms: float
    slower_degree: int | None
    slower_unit_ms: float


def _stay(candidates: tuple[Candidate, ...], degree: int, batch: int, revision: int) -> _Stay:
    place = next(index for index, candidate in enumerate(candidates) if candidate.degree == degree)
    unit_ms = candidates[place].latency_ms
    if place == 0:  # nothing is slower, so it stays whatever room there is
        return _Stay(degree, batch, revision, unit_ms, None, inf)
    return _Stay(degree, batch, revision, unit_ms, candidates[place - 1].degree, candidates[place - 1].latency_ms)

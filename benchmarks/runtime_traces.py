"""Replay device traces against the runtime's controller, an oracle and three baselines, without a device.

    python benchmarks/runtime_traces.py [--seed N] [--json]
    python benchmarks/runtime_traces.py --seeds N

A trace is, per request, what every degree takes and what the budget is. The clairvoyant oracle knows each latency in
advance and takes the most accurate degree that meets the budget, the fastest when none does. Baselines: always the
dense model, always the fastest degree, and a static table (the profile's p95, no learning). With --seeds each synthetic
trace is drawn that many times: the controller's mean, and its worst draw.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tocom.formats.profile import Latency
from tocom.runtime.policy.choice import Candidate, choose, frontier
from tocom.runtime.policy.controller import Controller, ControllerConfig
from tocom.runtime.profiles import latency_of

# Medians of DeiT-S under ONNX Runtime on two cores of an AMD EPYC (Zen 5), batch 1, milliseconds.
BASE_MS = {0: 28.9, 4: 28.0, 8: 24.4, 12: 20.9, 16: 17.7}
# Accuracies of the shape that token merging has: flat first, steep at the end. Made up, in percent.
ACCURACY = {0: 79.8, 4: 79.7, 8: 79.3, 12: 78.5, 16: 76.9}
REQUESTS = 2000


@dataclass(frozen=True)
class Trace:
    """Latencies [requests, degrees] in milliseconds, one budget per request, and where the device changed."""

    name: str
    degrees: tuple[int, ...]
    latency_ms: np.ndarray
    budget_ms: np.ndarray
    profile: dict[int, Latency]
    accuracy: dict[int, float]
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a policy made of a trace."""

    degrees: np.ndarray
    missed: np.ndarray
    accuracy: float
    switches: int

    @property
    def miss_share(self) -> float:
        return float(self.missed.mean())


def synthetic_traces(
    seed: int = 0, base_ms: dict[int, float] | None = None, accuracy: dict[int, float] | None = None
) -> Iterator[Trace]:
    """Yield the traces that the documentation names; of other degrees where their medians and accuracies are given."""
    base_ms, accuracy = base_ms or BASE_MS, accuracy or ACCURACY
    generator = np.random.default_rng(seed)
    time = np.arange(REQUESTS)

    def _trace(name: str, slowdown: np.ndarray, generator: np.random.Generator, **options: Any) -> Trace:
        return _make_trace(name, slowdown, generator, base_ms, accuracy, **options)

    def speed(*changes: tuple[int, float]) -> np.ndarray:
        values = np.ones(REQUESTS)
        for start, factor in changes:
            values[start:] = factor
        return values

    throttled = speed((600, 1 / 0.6), (1400, 1.0))
    yield _trace("step throttling to 60 % and back", throttled, generator, steps=(600, 1400))
    tight = np.where((time // 250) % 2 == 0, 34.0, 31.0)
    yield _trace("step throttling, budget steps too", throttled, generator, budget_ms=tight, steps=(600, 1400))
    heat = 1 + 0.5 * np.clip(np.minimum(time / 900, (REQUESTS - time) / 500), 0, 1)
    yield _trace("slow heat drift", heat, generator)
    interference = np.where(time % 100 < 15, 1.35, 1.0)
    yield _trace("periodic interference", interference, generator)
    spikes = np.where(generator.random(REQUESTS) < 0.02, 1 + generator.pareto(1.5, REQUESTS) * 0.5 + 0.3, 1.0)
    yield _trace("heavy-tailed spikes", spikes, generator)
    yield _trace("power-mode change", speed((700, 1.5)), generator, steps=(700,))
    noisy = speed((500, 1.4), (900, 1.0), (1300, 1.6))
    yield _trace("steps with wide noise", noisy, generator, noise=0.03, steps=(500, 900, 1300))
    wrong = _profile(generator, 0.02, base_ms)
    wrong[0] = Latency(200, *(0.85 * ms for ms in _quantiles(wrong[0])))
    yield _trace("profile 15 % too fast at degree 0", speed((800, 1.3), (1200, 1.0)), generator, profile=wrong)


def recorded_traces(folder: Path) -> Iterator[Trace]:
    """Yield the traces that ``--record`` of runtime_load.py wrote: real latencies of every degree, interleaved."""
    for path in sorted(folder.glob("trace-*.json")):
        content = json.loads(path.read_text())
        degrees = tuple(content["degrees"])
        latency = np.asarray(content["latency_ms"])
        quiet = latency[content["quiet"][0] : content["quiet"][1]]
        profile = {degree: latency_of(list(quiet[:, column])) for column, degree in enumerate(degrees)}
        yield Trace(
            content["name"],
            degrees,
            latency,
            np.full(len(latency), content["budget_ms"]),
            profile,
            ACCURACY,
            tuple(content["steps"]),
        )


def _quantiles(latency: Latency) -> tuple[float, float, float, float]:
    return latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms


def _profile(generator: np.random.Generator, noise: float, base_ms: dict[int, float]) -> dict[int, Latency]:
    return {
        degree: latency_of(list(base * np.exp(noise * generator.standard_normal(200))))
        for degree, base in base_ms.items()
    }


def _make_trace(
    name: str,
    slowdown: np.ndarray,
    generator: np.random.Generator,
    base_ms: dict[int, float],
    accuracy: dict[int, float],
    *,
    noise: float = 0.02,
    budget_ms: float | np.ndarray = 33.5,
    profile: dict[int, Latency] | None = None,
    steps: tuple[int, ...] = (),
) -> Trace:
    jitter = np.exp(noise * generator.standard_normal((REQUESTS, len(base_ms))))
    latency = np.asarray(list(base_ms.values())) * slowdown[:, None] * jitter
    measured = profile or _profile(generator, noise, base_ms)
    return Trace(name, tuple(base_ms), latency, np.broadcast_to(budget_ms, REQUESTS).copy(), measured, accuracy, steps)


def replay(trace: Trace, decide: Callable[[int, float], int]) -> Outcome:
    """Replay a policy that is given the request's index and budget and returns a degree."""
    column = {degree: index for index, degree in enumerate(trace.degrees)}
    taken = [decide(index, float(budget)) for index, budget in enumerate(trace.budget_ms)]
    columns = [column[degree] for degree in taken]
    missed = trace.latency_ms[np.arange(len(taken)), columns] > trace.budget_ms
    accuracy = float(np.mean([trace.accuracy[degree] for degree in taken]))
    return Outcome(np.asarray(taken), missed, accuracy, int((np.diff(taken) != 0).sum()))


def replay_controller(trace: Trace, config: ControllerConfig | None = None) -> Outcome:
    """Replay the runtime's controller; it sees only the latency of the degree that it took."""
    controller = Controller(trace.profile, trace.accuracy, config=config)
    column = {degree: index for index, degree in enumerate(trace.degrees)}

    def decide(index: int, budget: float) -> int:
        degree = controller.decide(budget).degree
        latency = float(trace.latency_ms[index, column[degree]])
        controller.observe(degree, latency, latency <= budget)
        return degree

    return replay(trace, decide)


def oracle(trace: Trace) -> Outcome:
    order = sorted(trace.degrees, key=lambda degree: -trace.accuracy[degree])
    column = {degree: index for index, degree in enumerate(trace.degrees)}

    def decide(index: int, budget: float) -> int:
        fitting = [degree for degree in order if trace.latency_ms[index, column[degree]] <= budget]
        return fitting[0] if fitting else trace.degrees[int(trace.latency_ms[index].argmin())]

    return replay(trace, decide)


def baselines(trace: Trace) -> dict[str, Outcome]:
    table = frontier([Candidate(d, trace.accuracy[d], trace.profile[d].p95_ms) for d in trace.degrees])
    return {
        "always dense": replay(trace, lambda *_: trace.degrees[0]),
        "always fastest": replay(trace, lambda *_: trace.degrees[-1]),
        "static table": replay(trace, lambda _, budget: choose(table, budget).degree),
    }


def requests_to_recover(trace: Trace, outcome: Outcome, step: int, window: int = 40, target: float = 0.06) -> int:
    """Return after how many requests from the step on the misses of the following window are within the target."""
    for wait in range(len(outcome.missed) - step - window):
        if outcome.missed[step + wait : step + wait + window].mean() <= target and not outcome.missed[step + wait]:
            return wait
    return len(outcome.missed)


def print_seeds(seeds: int) -> None:
    """Print what the controller makes of each synthetic trace over many draws: mean and worst."""
    drawn: dict[str, list[tuple[float, ...]]] = {}
    for seed in range(seeds):
        for trace in synthetic_traces(seed):
            ours, best = replay_controller(trace), oracle(trace)
            dense = baselines(trace)["always dense"]
            waits = [requests_to_recover(trace, ours, step) for step in trace.steps]
            figures = (
                best.accuracy - ours.accuracy,
                ours.miss_share,
                float(ours.missed.sum() / dense.missed.sum()),
                float(max(waits, default=0)),
                float(ours.switches),
            )
            drawn.setdefault(trace.name, []).append(figures)
    for name, draws in drawn.items():
        mean, worst = np.mean(draws, axis=0), np.max(draws, axis=0)
        print(
            f"{name:36} below the oracle {mean[0]:+.3f} ({worst[0]:+.3f})  misses {mean[1]:.2%} ({worst[1]:.2%})  "
            f"of always dense's {mean[2]:.1%} ({worst[2]:.1%})  recovery {mean[3]:.1f} ({worst[3]:.0f})  "
            f"switches {mean[4]:.0f} ({worst[4]:.0f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, help="summarise this many draws of the synthetic traces")
    parser.add_argument("--traces", type=Path, default=Path(__file__).parent / "traces")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.seeds is not None:
        print_seeds(arguments.seeds)
        return
    rows = []
    for trace in [*synthetic_traces(arguments.seed), *recorded_traces(arguments.traces)]:
        ours, best = replay_controller(trace), oracle(trace)
        for name, outcome in {"tocom": ours, "oracle": best, **baselines(trace)}.items():
            rows.append(
                {
                    "trace": trace.name,
                    "policy": name,
                    "misses": round(outcome.miss_share, 4),
                    "accuracy": round(outcome.accuracy, 3),
                    "to_oracle": round(best.accuracy - outcome.accuracy, 3),
                    "switches": outcome.switches,
                    "recovery": [requests_to_recover(trace, outcome, step) for step in trace.steps],
                }
            )
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            f"{row['trace']:36} {row['policy']:15} misses {row['misses']:7.2%}  accuracy {row['accuracy']:7.3f} "
            f"({-row['to_oracle']:+.3f})  switches {row['switches']:4d}  recovery {row['recovery']}"
        )


if __name__ == "__main__":
    main()

"""The controller on device traces, against the numbers that the runtime promises."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SIMULATOR = Path(__file__).parents[3] / "benchmarks" / "runtime_traces.py"


def _simulator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("runtime_traces", SIMULATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["runtime_traces"] = module
    spec.loader.exec_module(module)
    return module


simulator = _simulator()
TRACES = {(seed, trace.name): trace for seed in (0, 1, 2) for trace in simulator.synthetic_traces(seed)}


@pytest.mark.parametrize("key", TRACES, ids=lambda key: f"{key[1]}, seed {key[0]}")
def test_misses_recovery_and_accuracy(key: tuple[int, str]) -> None:
    trace = TRACES[key]
    ours, best = simulator.replay_controller(trace), simulator.oracle(trace)
    dense = simulator.baselines(trace)["always dense"]
    assert ours.miss_share <= 0.06
    assert best.accuracy - ours.accuracy <= 0.3
    for step in trace.steps:
        assert simulator.requests_to_recover(trace, ours, step) <= 8
    if "step" in trace.name:
        assert ours.missed.sum() <= 0.05 * dense.missed.sum()


def test_recorded_traces() -> None:
    # On a real device some requests no degree can answer in time; the oracle's misses are no fault of the policy.
    for trace in simulator.recorded_traces(SIMULATOR.parent / "traces"):
        ours, best = simulator.replay_controller(trace), simulator.oracle(trace)
        assert ours.miss_share - best.miss_share <= 0.06, trace.name
        for step in trace.steps:
            at_best = simulator.requests_to_recover(trace, best, step)
            assert simulator.requests_to_recover(trace, ours, step) - at_best <= 8, trace.name


@pytest.mark.parametrize("name", ["step throttling to 60 % and back", "slow heat drift", "power-mode change"])
def test_better_than_every_baseline(name: str) -> None:
    trace = TRACES[(0, name)]
    ours = simulator.replay_controller(trace)
    baselines = simulator.baselines(trace)
    assert ours.miss_share < 0.1 * baselines["static table"].miss_share
    assert ours.miss_share < 0.1 * baselines["always dense"].miss_share
    assert ours.accuracy > baselines["always fastest"].accuracy + 1.0


def test_it_does_not_flap() -> None:
    for key, trace in TRACES.items():
        assert simulator.replay_controller(trace).switches <= 0.05 * len(trace.budget_ms), key


def test_the_simulator_itself_sees_a_bad_policy() -> None:
    trace = TRACES[(0, "step throttling to 60 % and back")]
    dense = simulator.baselines(trace)["always dense"]
    assert dense.miss_share == pytest.approx(0.4, abs=0.01)
    assert simulator.requests_to_recover(trace, dense, trace.steps[0]) > 100
    best = simulator.oracle(trace)
    assert best.miss_share <= min(outcome.miss_share for outcome in simulator.baselines(trace).values())


@pytest.mark.parametrize("stairs", [False, True])
def test_the_suggested_degrees_lose_at_most_a_tenth_of_a_point(stairs: bool) -> None:
    spec = importlib.util.spec_from_file_location("suggested_degrees", SIMULATOR.with_name("suggested_degrees.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.compare(stairs, seed=0)
    assert len(rows[0]["degrees"]) <= 12
    assert sum(row["all"] - row["suggested"] for row in rows) / len(rows) <= 0.1
    assert sum(row["misses_suggested"] - row["misses_all"] for row in rows) / len(rows) <= 0.01

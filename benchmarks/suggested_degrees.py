"""What the suggested degrees lose against all 17, with the runtime's controller on the trace simulator.

    python benchmarks/suggested_degrees.py [--seeds N] [--json]

Two devices: one whose latency falls smoothly with the degree, one on which it falls only at every second degree, as
where the device pads tokens. Latencies between the five measured degrees are interpolated. Each trace runs at its own
budget and at budgets across the whole range of the device, so that no single budget flatters the choice.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import numpy as np
from runtime_traces import ACCURACY, BASE_MS, Trace, replay_controller, synthetic_traces

from tocom.calibration import Suggestion, suggest_degrees
from tocom.formats.profile import Accuracy, DegreeProfile, Profile

DEGREES = range(17)
BUDGET_FACTORS = (1.0, 0.9, 0.8, 0.7, 0.6)


def device(stairs: bool) -> tuple[dict[int, float], dict[int, float]]:
    """Return the median milliseconds and the accuracy in percent of all 17 degrees."""
    known = list(BASE_MS)
    base = {r: float(np.interp(r - r % 2 if stairs else r, known, list(BASE_MS.values()))) for r in DEGREES}
    return base, {r: float(np.interp(r, known, list(ACCURACY.values()))) for r in DEGREES}


def suggested(trace: Trace) -> Suggestion:
    """Return what ``tocom calibrate --suggest`` says of the trace's profile."""
    degrees = {
        degree: DegreeProfile(
            trace.profile[degree], Accuracy("top1", value, 1000, max(value - 0.02, 0), min(value + 0.02, 1))
        )
        for degree in trace.degrees
        for value in (trace.accuracy[degree] / 100,)
    }
    return suggest_degrees(Profile({}, "onnxruntime", "fp32", 1, 2, "0" * 64, "simulated", degrees, "simulated"))


def only(trace: Trace, degrees: tuple[int, ...]) -> Trace:
    """Return the trace as a runtime with these degrees alone meets it."""
    columns = [trace.degrees.index(degree) for degree in degrees]
    profile = {degree: trace.profile[degree] for degree in degrees}
    accuracy = {degree: trace.accuracy[degree] for degree in degrees}
    return replace(trace, degrees=degrees, latency_ms=trace.latency_ms[:, columns], profile=profile, accuracy=accuracy)


def compare(stairs: bool, seed: int) -> list[dict[str, Any]]:
    """Return per trace and budget the accuracy in percent and the misses, with all degrees and the suggested ones."""
    base, accuracy = device(stairs)
    traces = list(synthetic_traces(seed, base, accuracy))
    choice = suggested(traces[0])
    rows = []
    for trace in traces:
        for factor in BUDGET_FACTORS:
            tight = replace(trace, budget_ms=trace.budget_ms * factor)
            every, few = replay_controller(tight), replay_controller(only(tight, choice.degrees))
            rows.append(
                {
                    "device": "stairs" if stairs else "smooth",
                    "seed": seed,
                    "trace": trace.name,
                    "budget_factor": factor,
                    "degrees": list(choice.degrees),
                    "all": every.accuracy,
                    "suggested": few.accuracy,
                    "misses_all": every.miss_share,
                    "misses_suggested": few.miss_share,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [row for stairs in (False, True) for seed in range(arguments.seeds) for row in compare(stairs, seed)]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for name in ("smooth", "stairs"):
        part = [row for row in rows if row["device"] == name]
        lost = np.array([row["all"] - row["suggested"] for row in part])
        misses = np.array([row["misses_suggested"] - row["misses_all"] for row in part])
        chosen = part[0]["degrees"]
        print(
            f"{name}: {len(chosen)} of {len(DEGREES)} degrees {chosen}; accuracy lost {lost.mean():+.3f} points on "
            f"average, {lost.max():+.3f} at most; misses {misses.mean():+.2%} ({len(part)} replays)"
        )
        for factor in BUDGET_FACTORS:
            some = np.array([row["all"] - row["suggested"] for row in part if row["budget_factor"] == factor])
            print(f"  budgets × {factor}: {some.mean():+.3f} points on average, {some.max():+.3f} at most")


if __name__ == "__main__":
    main()

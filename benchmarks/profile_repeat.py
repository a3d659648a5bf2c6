"""Profile one bundle twice, then under an injected constant slow-down: do the medians and the ranking hold?

    python benchmarks/profile_repeat.py BUNDLE [--samples N] [--slow-down F] [--attempts N] [--json]

On an otherwise idle machine the medians of the two runs must be within 5 % of each other at every degree. The
slow-down makes every inference take F times as long, by waiting busily after it; the degrees must rank as before.
Degrees whose 95 % intervals of the median overlap have no ranking to keep. A run that marks itself as doubtful (the
device changed in the middle: a virtual machine's neighbours do that) is told and measured again, at most
``--attempts`` times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from tocom.calibration import run_latency
from tocom.calibration.device_state.reader import open_reader
from tocom.calibration.latency.measure import LatencyRun
from tocom.formats.measurements import Latency
from tocom.runtime import Runtime

MOST_DIFFERENCE = 0.05


class SlowedEngine:
    """An engine that takes ``factor`` times as long."""

    def __init__(self, engine: Any, factor: float) -> None:
        self._engine, self._factor = engine, factor

    def run(self, images: Any) -> Any:
        begin = time.perf_counter()
        outputs = self._engine.run(images)
        end = begin + (time.perf_counter() - begin) * self._factor
        while time.perf_counter() < end:
            pass
        return outputs

    def is_settled(self, batch: int) -> bool:
        return bool(self._engine.is_settled(batch))

    def close(self) -> None:
        self._engine.close()


def settled(arguments: argparse.Namespace, name: str, seed: int, factor: float = 1.0) -> LatencyRun:
    """Return the first run that is not doubtful, or the last of as many as are allowed."""
    for _ in range(arguments.attempts):
        run = profile(arguments, seed, factor)
        if not run.state.marks:
            break
        print(f"{name} run is doubtful: {'; '.join(run.state.marks)}", file=sys.stderr)
    return run


def profile(arguments: argparse.Namespace, seed: int, factor: float = 1.0) -> LatencyRun:
    """Return one run of measurement, in a runtime of its own."""
    with Runtime.open(arguments.bundle, arguments.backend, threads=arguments.threads, warm=False) as runtime:
        runtime.warm_up(expect_profile=False)
        if factor != 1.0:
            engines = runtime._active.engines
            engines.update({degree: SlowedEngine(engine, factor) for degree, engine in engines.items()})
        reader = open_reader(runtime.backend.device)
        return run_latency(runtime, samples=arguments.samples, seed=seed, reader=reader)


def told_apart(latency: dict[int, Latency]) -> set[tuple[int, int]]:
    """Return the pairs (faster, slower) of degrees whose medians' intervals do not overlap."""
    return {
        (fast, slow)
        for fast, slow in itertools.permutations(latency, 2)
        if latency[fast].intervals_ms["p50"][1] < latency[slow].intervals_ms["p50"][0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--slow-down", type=float, default=1.5)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--attempts", type=int, default=3, help="runs of which the first undoubtful one is taken")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.samples < 6 or arguments.slow_down <= 1 or arguments.attempts < 1:
        parser.error("--samples must be at least 6 (for an interval of the median), --slow-down above 1, --attempts 1")
    first, second = settled(arguments, "first", 0), settled(arguments, "second", 1)
    slowed = settled(arguments, "slowed", 2, arguments.slow_down)
    rows = [
        {
            "degree": degree,
            "first_p50_ms": one.p50_ms,
            "second_p50_ms": (other := second.latency[degree]).p50_ms,
            "difference": other.p50_ms / one.p50_ms - 1,
            "slowed_p50_ms": slowed.latency[degree].p50_ms,
            "slow_down": slowed.latency[degree].p50_ms / one.p50_ms,
            "samples": [one.count, other.count, slowed.latency[degree].count],
        }
        for degree, one in first.latency.items()
    ]
    before, after = told_apart(first.latency), told_apart(slowed.latency)
    turned = sorted(pair for pair in after if pair[::-1] in before)
    report = {
        "degrees": rows,
        "within_5_percent": all(abs(row["difference"]) <= MOST_DIFFERENCE for row in rows),
        "pairs_told_apart": len(before),
        "pairs_turned_by_the_slow_down": turned,
        "marks": [list(run.state.marks) for run in (first, second, slowed)],
        "stopped": [run.stopped for run in (first, second, slowed)],
    }
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        for row in rows:
            print(
                f"degree {row['degree']:2d}: {row['first_p50_ms']:8.3f} ms, {row['second_p50_ms']:8.3f} ms "
                f"({row['difference']:+.1%}), slowed {row['slowed_p50_ms']:8.3f} ms (× {row['slow_down']:.2f})"
            )
        print(f"medians within 5 % at every degree: {report['within_5_percent']}")
        print(f"pairs of degrees told apart: {len(before)}; turned by the slow-down: {turned or 'none'}")
    sys.exit(not report["within_5_percent"] or bool(turned))


if __name__ == "__main__":
    main()

"""The runtime under a competing CPU load that comes and goes, for real.

    python benchmarks/runtime_load.py BUNDLE [--seconds S] [--hogs N] [--budget-ms X] [--record]

Three phases of S seconds: quiet, loaded (N processes that only compute), quiet. Requests follow each other at once.
Without --budget-ms the budget is what the fastest degree needs under load plus 10 %, at least what the slowest
needs without. Misses under load must be at most 10 %, and within 2 s after the load ends the runtime must be back at
the most accurate degree whose quiet p95 meets the budget. With --record all degrees are timed in turns through the
same phases, and the trace goes to benchmarks/traces/ for runtime_traces.py. Use deit_small_patch16_224 with degrees
0,4,8,12,16 on two idle cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tocom.calibration import calibrate, run_latency
from tocom.runtime import Runtime

TRACES = Path(__file__).parent / "traces"


def _hog(stop: Any) -> None:
    values = np.random.default_rng(0).standard_normal((96, 96))
    while not stop.is_set():
        for _ in range(200):
            values = np.tanh(values @ values.T / 96)


@contextlib.contextmanager
def load(count: int) -> Iterator[None]:
    """Keep ``count`` processes computing for the block."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    hogs = [context.Process(target=_hog, args=(stop,), daemon=True) for _ in range(count)]
    for hog in hogs:
        hog.start()
    # Starting an interpreter is a load of another kind; wait until they compute.
    time.sleep(2.0)
    try:
        yield
    finally:
        stop.set()
        for hog in hogs:
            hog.join()


def serve(runtime: Runtime, images: np.ndarray, budget_ms: float, seconds: float) -> list[dict[str, Any]]:
    rows, begin = [], time.monotonic()
    while (now := time.monotonic()) - begin < seconds:
        result = runtime.infer(images, budget_ms)
        rows.append({"at": now, "degree": result.degree, "latency_ms": result.latency_ms, "met": result.met_budget})
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    latencies = [row["latency_ms"] for row in rows]
    p50, p95 = np.quantile(latencies, (0.5, 0.95))
    return {
        "requests": len(rows),
        "miss_share": round(1 - sum(row["met"] for row in rows) / len(rows), 4),
        "p50_ms": round(float(p50), 2),
        "p95_ms": round(float(p95), 2),
        "degrees": {str(degree): count for degree, count in sorted(Counter(row["degree"] for row in rows).items())},
    }


def record(runtime: Runtime, images: np.ndarray, budget_ms: float, arguments: argparse.Namespace) -> Path:
    """Time every degree in turns through the three phases and write the trace."""
    degrees = list(runtime.degrees)
    marks, rows = [0], []

    def rounds(seconds: float) -> None:
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            rows.append([round(runtime.infer(images, degree=degree).latency_ms, 3) for degree in degrees])
        marks.append(len(rows))

    rounds(arguments.seconds)
    with load(arguments.hogs):
        rounds(arguments.seconds)
    rounds(arguments.seconds)
    TRACES.mkdir(exist_ok=True)
    path = TRACES / f"trace-{runtime.bundle.model_name}-cpu-load.json"
    content = {
        "name": f"recorded: {runtime.bundle.model_name}, {arguments.hogs} competing processes on and off",
        "device": dict(runtime.backend.device),
        "threads": runtime.backend.threads,
        "degrees": degrees,
        "budget_ms": budget_ms,
        "quiet": [0, marks[1]],
        "steps": marks[1:3],
        "latency_ms": rows,
    }
    path.write_text(json.dumps(content) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--hogs", type=int, default=1)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--budget-ms", type=float)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    profile = calibrate(arguments.bundle, samples=arguments.samples, threads=arguments.threads, save=False)
    with Runtime.open(arguments.bundle, profile=profile, threads=arguments.threads) as runtime:
        channels, height, width = runtime.bundle.image_shape
        images = np.random.default_rng(0).standard_normal((1, channels, height, width), np.float32)
        quiet = {degree: entry.latency.p95_ms for degree, entry in profile.degrees.items()}
        with load(arguments.hogs):
            loaded = {d: x.p95_ms for d, x in run_latency(runtime, samples=arguments.samples).latency.items()}
        budget = arguments.budget_ms or max(1.1 * min(loaded.values()), 1.05 * max(quiet.values()))
        if arguments.record:
            print(record(runtime, images, budget, arguments))
            return
        target = next(degree for degree in sorted(quiet) if quiet[degree] <= budget)
        serve(runtime, images, budget, 3.0)
        phases = {"quiet": serve(runtime, images, budget, arguments.seconds)}
        with load(arguments.hogs):
            phases["loaded"] = serve(runtime, images, budget, arguments.seconds)
        ended = time.monotonic()
        phases["quiet again"] = serve(runtime, images, budget, arguments.seconds)
    back = next((row["at"] - ended for row in phases["quiet again"] if row["degree"] <= target), float("inf"))
    report = {
        "model": runtime.bundle.model_name,
        "threads": profile.threads,
        "hogs": arguments.hogs,
        "budget_ms": round(budget, 2),
        "quiet_p95_ms": {str(degree): round(ms, 2) for degree, ms in quiet.items()},
        "loaded_p95_ms": {str(degree): round(ms, 2) for degree, ms in loaded.items()},
        "phases": {name: summary(rows) for name, rows in phases.items()},
        "seconds_until_back": round(back, 3),
        "passes": {
            "misses under load at most 10 %": summary(phases["loaded"])["miss_share"] <= 0.1,
            "back within 2 s": back <= 2.0,
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

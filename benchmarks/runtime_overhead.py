"""What ``Runtime.infer`` costs over the bare session, and what a change of degree costs.

    python benchmarks/runtime_overhead.py BUNDLE [--requests N] [--threads N]

Overhead: ``infer`` and the bare ``InferenceSession.run`` of the same degree take turns, same session, same images, each
right after itself: what the other one left in the caches would be charged to it. Of each call the time of the compiled
run inside is taken off, which is the same on both ways, so the noise of the inference itself cancels. What is left of a
bare call is the Python part of ``InferenceSession.run`` (after an inference the caches are cold, and it is slow); its
median is taken off what is left of ``infer``, which calls the compiled run itself. It must be at most 50 µs at p50 and
150 µs at p99. A bare call has a tail of its own, interrupts for one: its p90 and p99 stand beside, and so does the
p99 of infer less the bare call's own p99; the limit is on the stricter figure, over the bare call's median. As a check
of that method the medians of the whole calls are compared too. The mean (of all up to the p99) and the p90 also show
the requests that learn from what earlier ones left over.

Switch: degrees in random order; a degree's time right after another degree over its time right after itself, medians.
It must be at most 1.02. Use a bundle of deit_tiny_patch16_224 with degrees 0,4,8,12,16 on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tocom.runtime import Runtime


class _Timed:
    """The compiled part of a session, which both ways call; what it takes is kept, to be taken off."""

    def __init__(self, session: Any) -> None:
        # The public session calls other methods too: bound here, they cost it what they cost without this class.
        for name in dir(session):
            if not name.startswith("__") and name != "run":
                setattr(self, name, getattr(session, name))
        self._session = session
        self.took = 0.0

    def run(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        values = self._session.run(*arguments)
        self.took = time.perf_counter() - start
        return values


def overhead(runtime: Runtime, images: np.ndarray, requests: int) -> dict[str, Any]:
    """Return overhead quantiles in microseconds, and the paired medians in milliseconds."""
    degree = runtime.degrees[0]
    engine = runtime._active.engines[degree]
    session, names, feeds = engine._session, engine._names, {engine._input: images}
    compiled, engine_run = session._sess, engine._run
    session._sess = timed = _Timed(compiled)
    engine._run = timed.run
    rest: dict[bool, list[float]] = {True: [], False: []}
    whole: dict[bool, list[float]] = {True: [], False: []}
    calls = {True: lambda: runtime.infer(images, budget_ms=60_000.0), False: lambda: session.run(names, feeds)}
    draw, answers = random.Random(0), 0
    for request in range(requests + 20):
        for through in (True, False) if request % 2 else (False, True):
            # Untimed ones first, at times one and at times two: what infer does every eighth time gets its share.
            before = draw.randint(1, 2)
            for _ in range(before):
                calls[through]()
            start = time.perf_counter()
            calls[through]()
            took = time.perf_counter() - start
            answers += (before + 1) * through
            if request >= 20:
                rest[through].append((took - timed.took) * 1e6)
                whole[through].append(took * 1e3)
    session._sess, engine._run = compiled, engine_run
    assert runtime.stats()["answers"] == {str(degree): answers}, "a generous budget must keep the first degree"
    over = np.array(rest[True]) - median(rest[False])
    p50, p90, p99 = np.quantile(over, (0.5, 0.9, 0.99))
    bare_p90, bare_p99 = np.quantile(rest[False], (0.9, 0.99))
    return {
        "overhead_p50_us": round(float(p50), 1),
        "overhead_p90_us": round(float(p90), 1),
        "overhead_p99_us": round(float(p99), 1),
        "overhead_mean_us": round(float(over[over <= p99].mean()), 1),
        "bare_call_p50_us": round(median(rest[False]), 1),
        "bare_call_p90_us": round(float(bare_p90), 1),
        "bare_call_p99_us": round(float(bare_p99), 1),
        "infer_call_p50_us": round(median(rest[True]), 1),
        "infer_call_p99_us": round(float(np.quantile(rest[True], 0.99)), 1),
        "call_p99_difference_us": round(float(np.quantile(rest[True], 0.99) - bare_p99), 1),
        "bare_p50_ms": round(median(whole[False]), 3),
        "infer_p50_ms": round(median(whole[True]), 3),
        "whole_p50_difference_us": round((median(whole[True]) - median(whole[False])) * 1e3, 1),
    }


def switch(runtime: Runtime, images: np.ndarray, requests: int, seed: int = 0) -> dict[str, Any]:
    """Return how much longer a degree takes after another degree than after itself."""
    draw = random.Random(seed)
    stayed: dict[int, list[float]] = {degree: [] for degree in runtime.degrees}
    switched: dict[int, list[float]] = {degree: [] for degree in runtime.degrees}
    before = runtime.degrees[0]
    for _ in range(requests):
        # Half of all requests stay, so that both kinds have equal samples.
        degree = before if draw.random() < 0.5 else draw.choice(runtime.degrees)
        took = runtime.infer(images, degree=degree).latency_ms
        (stayed if degree == before else switched)[degree].append(took)
        before = degree
    ratios = {degree: median(switched[degree]) / median(stayed[degree]) for degree in runtime.degrees}
    return {
        "switch_over_stay": round(median(ratios.values()), 4),
        "per_degree": {str(degree): round(ratio, 4) for degree, ratio in ratios.items()},
        "stay_p50_ms": {str(degree): round(median(values), 3) for degree, values in stayed.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    with Runtime.open(arguments.bundle, "onnxruntime", threads=arguments.threads) as runtime:
        channels, height, width = runtime.bundle.image_shape
        images = np.random.default_rng(0).standard_normal((1, channels, height, width), np.float32)
        report = {
            "model": runtime.bundle.model_name,
            "threads": runtime.backend.threads,
            "requests": arguments.requests,
            **overhead(runtime, images, arguments.requests),
            **switch(runtime, images, 2 * arguments.requests),
        }
    report["passes"] = {
        "overhead p50 at most 50 µs": report["overhead_p50_us"] <= 50,
        "overhead p99 at most 150 µs": report["overhead_p99_us"] <= 150,
        "switch at most 2 %": report["switch_over_stay"] <= 1.02,
    }
    print(json.dumps(report, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()

"""Serve for an hour under random budgets, faults and reloads; check every answer, and what is left behind.

    python benchmarks/soak.py [--minutes M] [--rate R] [--seed S] [--out FILE]

One process serves two small real bundles (benchmarks/soak_bundles.py makes them) through ``Runtime``: single requests
and pairs with random budgets and deadlines, submissions, streams, requests that are wrong, reloads of the other bundle
and of a damaged one, engines that raise, answer NaN, fall silent or are lost until the next reload, and now and then
the runtime is closed and opened again, with and without a limit on silence. Every answer is compared with torch's
answer of its degree and bundle. Between requests, resident memory (RSS, PSS), open files and threads are sampled.

Passes when no answer is wrong, no request fails that was not made to fail, resident memory stays within 2 % of what it
was after the warm-up (the first sixth of the time), and files and threads are as many at the end as then.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

from tocom import __version__
from tocom.errors import BundleError, EngineError, RequestError
from tocom.runtime import Runtime
from tocom.system.cpu import cpu_identity
from tocom.system.files import write_json

RESULT = Path(__file__).parent / "results" / "soak.json"
TOLERANCE = 1e-3
DEGREES = (0, 4, 8)
SILENCE_LIMIT_S = 2.0
SAMPLE_EVERY_S = 5.0
WARM_UP_SHARE = 1 / 6
MEMORY_LIMIT = 0.02


class Soak:
    """The runtime under test, what it must answer, and what was seen."""

    def __init__(self, folder: Path, seed: int) -> None:
        known = np.load(folder / "expected.npz")
        self.folder, self.images = folder, known["images"]
        self.expected = {name: known[name] for name in "ab"}
        self.draw = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.unexpected: list[str] = []
        self.missed = self.budgeted = 0
        self.serving = "a"
        self.runtime = self.opened()

    def opened(self) -> Runtime:
        guarded = self.counts["opened"] % 2 == 0
        self.counts["opened"] += 1
        return Runtime.open(self.folder / self.serving, threads=1, timeout_s=SILENCE_LIMIT_S if guarded else None)

    def budget_ms(self) -> float | None:
        """Return none, or from one that nothing meets to one that every degree meets."""
        assert self.runtime.profile is not None
        slowest = max(entry.latency.p95_ms for entry in self.runtime.profile.degrees.values())
        return self.draw.choice([None, 1e-3, *(slowest * share for share in (0.5, 0.8, 1.0, 1.5, 2.0, 5.0))])

    def pick(self) -> tuple[list[int], np.ndarray]:
        """Return the numbers of one or two images, and the images."""
        first = self.draw.randrange(len(self.images))
        chosen = [first] if self.draw.random() < 0.8 else [first, (first + 1) % len(self.images)]
        return chosen, self.images[chosen]

    def check(self, result: Any, chosen: list[int]) -> None:
        self.counts["answers"] += 1
        if result.budget_ms is not None:
            self.budgeted += 1
            self.missed += not result.met_budget
        expected = self.expected[self.serving][DEGREES.index(result.degree)][chosen]
        if not np.allclose(result.outputs["logits"], expected, atol=TOLERANCE):
            self.wrong.append(f"bundle {self.serving}, degree {result.degree}, images {chosen}")

    def refused(self, kind: str, error: type[Exception], call: Callable[[], object]) -> None:
        """Expect an error; anything else is noted."""
        self.counts[kind] += 1
        try:
            call()
        except error:
            return
        self.unexpected.append(f"{kind}: no {error.__name__}")

    def one_request(self) -> None:
        chosen, images = self.pick()
        kind = self.draw.random()
        if kind < 0.7:
            self.check(self.runtime.infer(images, self.budget_ms()), chosen)
        elif kind < 0.8:
            self.check(self.runtime.infer(images, deadline=time.monotonic() + self.draw.uniform(-0.001, 0.01)), chosen)
        elif kind < 0.9:
            several = [self.pick() for _ in range(4)]
            futures = [self.runtime.submit(images, self.budget_ms()) for _, images in several]
            for future, (chosen, _) in zip(futures, several, strict=True):
                self.check(future.result(timeout=60), chosen)
        elif kind < 0.95:
            picks = [self.pick() for _ in range(5)]
            for frame in self.runtime.stream((images for _, images in picks), fps=200):
                self.check(frame.result, picks[frame.index][0])
        else:
            bad = self.draw.choice([images.astype(np.float64), images[0], images * np.nan, np.repeat(images, 5, 0)])
            self.refused("bad request", RequestError, lambda: self.runtime.infer(bad))

    def reload(self) -> None:
        other = "b" if self.serving == "a" else "a"
        self.runtime.reload(self.folder / other)
        self.serving = other
        self.counts["reload"] += 1

    def reload_broken(self) -> None:
        self.refused("reload of a damaged bundle", BundleError, lambda: self.runtime.reload(self.folder / "broken"))

    def engine_fails(self) -> None:
        def fail(images: np.ndarray) -> Any:
            raise EngineError("made to fail by the soak")

        self.with_fault("engine that raises", fail)

    def engine_gives_nan(self) -> None:
        self.with_fault("engine that gives NaN", lambda images: {"logits": np.full((len(images), 3), np.nan)})

    def with_fault(self, kind: str, fault: Callable[[np.ndarray], Any]) -> None:
        engines = [getattr(engine, "_engine", engine) for engine in self.runtime._active.engines.values()]
        for engine in engines:
            engine.run = fault
        self.refused(kind, EngineError, lambda: self.runtime.infer(self.pick()[1]))
        for engine in engines:
            del engine.run

    def device_lost(self) -> None:
        """Every engine raises until a reload opens the device again."""

        def fail(images: np.ndarray) -> Any:
            raise EngineError("device lost, by the soak")

        for engine in self.runtime._active.engines.values():
            getattr(engine, "_engine", engine).run = fail
        for _ in range(3):
            self.refused("device lost", EngineError, lambda: self.runtime.infer(self.pick()[1]))
        self.reload()

    def device_silent(self) -> None:
        """A call does not return until long after the limit; a reload must serve meanwhile."""
        if not self.counts["opened"] % 2:  # opened without a limit
            return
        back = threading.Event()
        for engine in self.runtime._active.engines.values():
            engine._engine.run = lambda images: back.wait(60)
        for _ in range(2):  # the second one is refused at once
            self.refused("device silent", EngineError, lambda: self.runtime.infer(self.pick()[1]))
        self.reload()
        self.check(self.runtime.infer(self.images[:1]), [0])
        back.set()

    def reopen(self) -> None:
        self.runtime.close()
        self.runtime = self.opened()

    def step(self) -> None:
        """Do one thing; faults and reloads are rare beside requests."""
        events: list[tuple[float, Callable[[], None]]] = [
            (0.004, self.reload), (0.002, self.reload_broken), (0.003, self.engine_fails),
            (0.003, self.engine_gives_nan), (0.001, self.device_lost), (0.0003, self.device_silent),
            (0.0005, self.reopen), (1.0, self.one_request),
        ]  # fmt: skip
        what = next(event for share, event in events if self.draw.random() < share)
        try:
            what()
        except Exception as error:
            self.unexpected.append(f"{what.__name__}: {type(error).__name__}: {error}"[:300])


def sample(begin: float, requests: int) -> dict[str, float]:
    """Return what this process holds now. Cycles are collected first: they would be freed soon anyway."""
    gc.collect()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return {
        "minute": round((time.monotonic() - begin) / 60, 3),
        "requests": requests,
        "rss_mib": round(int(fields["Rss"].split()[0]) / 1024, 2),
        "pss_mib": round(int(fields["Pss"].split()[0]) / 1024, 2),
        "files": len(os.listdir("/proc/self/fd")) - 1,  # the listing's own
        "threads": len(os.listdir("/proc/self/task")),
    }


def serve(soak: Soak, seconds: float, rate: float) -> list[dict[str, float]]:
    begin = time.monotonic()
    samples, next_sample = [sample(begin, 0)], begin + SAMPLE_EVERY_S
    while (now := time.monotonic()) - begin < seconds:
        soak.step()
        if now >= next_sample:
            samples.append(sample(begin, soak.counts["answers"]))
            next_sample = now + SAMPLE_EVERY_S
            if len(samples) % 12 == 0:
                print(samples[-1], flush=True)
        time.sleep(soak.draw.expovariate(rate))  # a gentle stream of requests, not a benchmark
    samples.append(sample(begin, soak.counts["answers"]))
    return samples


def report(soak: Soak, samples: list[dict[str, float]], arguments: argparse.Namespace) -> dict[str, Any]:
    warm = [row for row in samples if row["minute"] >= samples[-1]["minute"] * WARM_UP_SHARE]
    fifth = max(len(warm) // 5, 1)
    first, last = warm[:fifth], warm[-fifth:]

    def growth(key: str) -> float:
        return round(median(row[key] for row in last) / median(row[key] for row in first) - 1, 5)

    highest = round(max(row["rss_mib"] for row in warm) / median(row["rss_mib"] for row in first) - 1, 5)
    more = {key: median(row[key] for row in last) - median(row[key] for row in first) for key in ("files", "threads")}
    every = max(len(samples) // 60, 1)
    return {
        "minutes": arguments.minutes,
        "rate_per_second": arguments.rate,
        "seed": arguments.seed,
        "machine": {
            **cpu_identity(),
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "tocom": __version__,
            "load_average_at_the_end": round(os.getloadavg()[2], 2),
        },
        "counts": dict(sorted(soak.counts.items())),
        "budgeted": soak.budgeted,
        "missed": soak.missed,
        "wrong_answers": len(soak.wrong),
        "unexpected": len(soak.unexpected),
        "first_wrong_or_unexpected": (soak.wrong + soak.unexpected)[:10],
        "after_warm_up": {
            "rss_growth": growth("rss_mib"),
            "pss_growth": growth("pss_mib"),
            "highest_rss_over_first": highest,
            "more_files": more["files"],
            "more_threads": more["threads"],
        },
        "passes": {
            "no wrong answer": not soak.wrong,
            "no request failed that was not made to": not soak.unexpected,
            "resident memory within 2 % after warm-up": abs(growth("rss_mib")) <= MEMORY_LIMIT,
            "no leaked files or threads": more["files"] <= 0 and more["threads"] <= 0,
        },
        "samples": [*samples[:-1:every], samples[-1]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=40.0, help="requests per second, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    logging.getLogger("tocom.runtime").setLevel(logging.ERROR)  # the faults are meant
    with tempfile.TemporaryDirectory(prefix="tocom-soak-") as name:
        os.environ["TOCOM_CACHE"] = f"{name}/cache"
        subprocess.run([sys.executable, Path(__file__).with_name("soak_bundles.py"), name], check=True)
        soak = Soak(Path(name), arguments.seed)
        try:
            samples = serve(soak, arguments.minutes * 60, arguments.rate)
        finally:
            soak.runtime.close()
    result = report(soak, samples, arguments)
    write_json(arguments.out, result)
    for key in ("counts", "budgeted", "missed", "after_warm_up", "first_wrong_or_unexpected", "passes"):
        print(f"{key}: {result[key]}")
    print(arguments.out)
    sys.exit(0 if all(result["passes"].values()) else 1)


if __name__ == "__main__":
    main()

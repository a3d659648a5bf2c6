"""Benchmarks with the ecosystem's conventions: warm-up, a duration, median, p90, p95, p99, the queue apart."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tocom.errors import RequestError
from tocom.formats.pixels import random_images
from tocom.runtime import Runtime
from tocom.system.numbers import is_integer

__all__ = ["bench", "check_load"]


def bench(
    runtime: Runtime,
    *,
    degree: int | None = None,
    budget_ms: float | None = None,
    duration_s: float = 3.0,
    warmup_s: float = 0.2,
    batch: int = 1,
    concurrency: int = 1,
) -> dict[str, Any]:
    """Send requests one after another for a while and return what they took.

    Args:
        runtime: A warm runtime.
        degree: Degree to run; None lets the policy choose within ``budget_ms``.
        budget_ms: Budget of each request; None sets no limit.
        duration_s: Seconds to measure.
        warmup_s: Seconds before that, not counted.
        batch: Images per request.
        concurrency: Threads that send requests; with more than one, requests wait for each other.

    Returns:
        Plain JSON content: requests, images per second, misses, degrees taken, and per part of the latency (``total``,
        ``queue``, ``compute``) mean, median, p90, p95 and p99 in milliseconds. Copies are part of ``compute``.

    Raises:
        RequestError: A duration, the batch or the concurrency is out of its range.
    """
    check_load(duration_s, warmup_s, concurrency)
    images = random_images(runtime.bundle.manifest["input"], batch, np.random.default_rng(0))
    runtime.infer(images, budget_ms, degree=degree)  # a bad argument shows here, on the caller's thread
    rows: list[tuple[float, float, int, bool]] = []
    begin = time.monotonic() + warmup_s
    end = begin + duration_s

    def send() -> None:
        while (now := time.monotonic()) < end:
            result = runtime.infer(images, budget_ms, degree=degree)
            if now >= begin:
                rows.append((result.latency_ms, result.queue_ms, result.degree, result.met_budget))

    with ThreadPoolExecutor(concurrency) as threads:
        for sent in [threads.submit(send) for _ in range(concurrency)]:
            sent.result()  # an error of a thread is raised here
    if not rows:
        raise RequestError(f"No request ended within 'duration_s'={duration_s}. Measure for longer.")
    total = np.array([row[0] for row in rows])
    queue = np.array([row[1] for row in rows])
    degrees, counts = np.unique([row[2] for row in rows], return_counts=True)
    return {
        "requests": len(rows),
        "batch": batch,
        "concurrency": concurrency,
        "budget_ms": budget_ms,
        "images_per_second": round(len(rows) * batch / duration_s, 2),
        "misses": sum(not row[3] for row in rows),
        "degrees": {str(degree): int(count) for degree, count in zip(degrees, counts, strict=True)},
        "total_ms": _quantiles(total),
        "queue_ms": _quantiles(queue),
        "compute_ms": _quantiles(total - queue),
    }


def check_load(duration_s: float, warmup_s: float, concurrency: int) -> None:
    """Raise RequestError where one of these parameters of :func:`bench` is out of its range."""
    for name, value in (("duration_s", duration_s), ("warmup_s", warmup_s)):
        if not 0 <= value < float("inf") or (name == "duration_s" and value == 0):
            raise RequestError(f"The {name!r} parameter must be a number of seconds. Got {value!r} instead.")
    if not is_integer(concurrency, 1):
        raise RequestError(f"The 'concurrency' parameter must be an integer >= 1. Got {concurrency!r} instead.")


def _quantiles(values: np.ndarray) -> dict[str, float]:
    names = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
    found = {name: round(float(np.quantile(values, share)), 4) for name, share in names.items()}
    return {"mean": round(float(values.mean()), 4), **found}

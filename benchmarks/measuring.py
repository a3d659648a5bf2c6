"""What the benchmarks share: the machine's description, interleaved timing, medians with intervals, JSON files."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

_PACKAGES = ("tocom", "numpy", "torch", "timm", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")


def machine() -> dict[str, Any]:
    """Return what a reader must know of the machine: processor, cores, memory, load, versions, date."""
    from tocom.system.cpu import cpu_identity  # here: first_answer.py times what a system itself imports

    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        **cpu_identity(),
        "memory_gib": round(gib, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "measured": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def between(page: str, begin: str, end: str, section: str) -> str:
    """Return a page with ``section`` in place of what stands from ``begin`` to ``end``; the section holds both."""
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return before + section + after


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pss_bytes() -> int:
    """Return this process's proportional set size."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/smaps_rollup has no Pss line")


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def interleave(
    variants: Mapping[str, Callable[[], Any]],
    *,
    seconds: float,
    least_rounds: int = 6,
    most_rounds: int = 40,
    settle_s: float = 0.03,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Time all variants in turns and return per variant one figure per round, in milliseconds.

    Every round takes each variant once, in an order drawn again, so that a slow phase of the machine hits all alike and
    figures of one round are pairs. A turn first runs untimed for ``settle_s``, at least once: the threads of the
    variant before it may still spin and take the cores. Then it runs up to five times, and counts the median.

    Args:
        variants: What to run, by name; each call is one inference.
        seconds: Rounds begin until this time is over.
        least_rounds: But at least so many.
        most_rounds: And at most so many.
        settle_s: Untimed seconds at the begin of a turn.
        seed: Of the order.
    """
    draw = random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in variants}
    begin, rounds = time.perf_counter(), 0
    while rounds < least_rounds or (rounds < most_rounds and time.perf_counter() - begin < seconds):
        for name in draw.sample(list(variants), len(variants)):
            times[name].append(_turn(variants[name], settle_s) * 1e3)
        rounds += 1
    return times


def _turn(run: Callable[[], Any], settle_s: float) -> float:
    begin = time.perf_counter()
    took = 0.0
    while not took or time.perf_counter() - begin < settle_s:
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
    samples = []
    for _ in range(max(1, min(5, int(0.1 / took)))):
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the median and an interval for it that assumes no distribution, by order statistics.

    The interval between the k-th smallest and the k-th largest value holds the true median with probability
    ``1 − 2·P(Binomial(n, ½) < k)``; the largest k that keeps the confidence is taken. Fewer than six values cannot
    reach 95 %: then it is the whole range.
    """
    ordered, count = sorted(values), len(values)
    below, rank = 0.0, 0
    for k in range(count // 2):
        below += math.comb(count, k) / 2**count
        if 1 - 2 * below < confidence:
            break
        rank = k
    return statistics.median(ordered), ordered[rank], ordered[-1 - rank]


def paired_ratio(slower: Sequence[float], faster: Sequence[float]) -> tuple[float, float, float]:
    """Return median and interval of ``slower / faster`` within a round: how many times the second is as fast."""
    return median_interval([a / b for a, b in zip(slower, faster, strict=True)])


def first_line(error: BaseException) -> str:
    """Return an error as one line, for a table."""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"[:300]

"""Where the time goes: ONNX Runtime's own profile of one degree, by block and by kind of work."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import EngineError, TocomError, one_line
from tocom.formats.bundle import Bundle
from tocom.formats.pixels import random_images
from tocom.system.files import scratch_folder
from tocom.system.onnxruntime_session import open_session, session_options
from tocom.system.progress import Progress, silent

__all__ = ["KINDS", "SUM_TOLERANCE", "BlockTimes", "block_times", "split_events"]

_WARM_UP, _TRIES = 2, 3
# How far the ops' sum may be from the median latency that was measured beside it, as a share.
SUM_TOLERANCE = 0.1
KINDS = ("attention", "matching and merging", "MLP", "before and after the blocks")
_NORMS = ("LayerNormalization", "SkipLayerNormalization")
# Ops that only token compression brings into a block; everything else there is the plain transformer.
_MATCHING = (
    "ArgMax", "GatherElements", "GatherND", "LpNormalization", "OneHot", "ReduceMax", "ReduceMean", "ReduceSum",
    "ScatterElements", "ScatterND", "Sort", "TokenMerge", "TokenMergeMapped", "TokenPrune", "TokenPruneMapped", "TopK",
)  # fmt: skip


@dataclass(frozen=True)
class BlockTimes:
    """Milliseconds of one inference of one degree, by op, as they were measured: scaled to nothing.

    Attributes:
        degree: The degree.
        blocks: Per block and kind of work; the last kind lies outside the blocks.
        outside_ms: Before the first and after the last block.
        whole: False where the blocks could not be told apart; ``blocks`` then holds one row for all.
    """

    degree: int
    blocks: tuple[Mapping[str, float], ...]
    outside_ms: float
    whole: bool = True

    def scaled(self, sum_ms: float) -> BlockTimes:
        """Return the same shares of another sum: of a median that was measured at another time."""
        factor = sum_ms / max(self.sum_ms, 1e-9)
        blocks = tuple({kind: factor * ms for kind, ms in block.items()} for block in self.blocks)
        return BlockTimes(self.degree, blocks, factor * self.outside_ms, self.whole)

    @property
    def totals(self) -> dict[str, float]:
        """Milliseconds per kind of work."""
        sums = {kind: sum(block.get(kind, 0.0) for block in self.blocks) for kind in KINDS[:-1]}
        return {**sums, KINDS[-1]: self.outside_ms}

    @property
    def sum_ms(self) -> float:
        """Milliseconds of all work together."""
        return sum(self.totals.values())


def block_times(
    bundle: Bundle,
    degrees: Sequence[int],
    *,
    threads: int,
    runs: int = 10,
    p50_ms: Mapping[int, float] | None = None,
    progress: Progress = silent,
) -> list[BlockTimes]:
    """Profile degrees under ONNX Runtime on the CPU, in turn: a machine that slows down slows down all of them.

    The profiler describes the shapes of each op's inputs and outputs within the op's own time (``KernelScope`` in ONNX
    Runtime's sequential_executor.cc), 3 to 6 µs an op on the machine of the benchmarks, whatever the op does. So the
    same sessions run without it as well: what they are faster is taken off every op alike.

    Args:
        bundle: The bundle; images are of its optimal batch.
        degrees: The degrees; all are resident at once.
        threads: CPU threads.
        runs: Inferences of each degree to take each op's median of, after two to warm up; as many without the profiler.
        p50_ms: Median latency per degree, measured just before. Where the sum of a degree's ops is not within
            ``SUM_TOLERANCE`` of it, the device has changed its speed since, and all degrees are measured again, up to
            three times in all; the times that come nearest are returned.
        progress: Gets what is done, how many rounds are, and of how many.

    Raises:
        BundleError: A file of the bundle does not match its manifest.
        EngineError: ONNX Runtime is missing, or refuses a file.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise EngineError("Profiling needs onnxruntime. Install it: pip install 'tocom[runtime]'.")
    images = random_images(bundle.manifest["input"], bundle.batch[1], np.random.default_rng(0))
    bundle.require_verified()
    tries: list[list[BlockTimes]] = []

    def farthest(found: Sequence[BlockTimes]) -> float:
        """Return how far the degree that is farthest off is from its p50, as a share."""
        return max(abs(each.sum_ms / p50_ms[each.degree] - 1) for each in found) if p50_ms else 0.0

    try:
        while len(tries) < _TRIES and (not tries or farthest(tries[-1]) > SUM_TOLERANCE):
            with scratch_folder("tocom-blocks") as folder:
                profiled = [_Profiled(bundle, degree, threads, folder) for degree in degrees]
                rounds = 2 * runs + _WARM_UP
                for done in range(rounds):
                    progress("where the time goes", done, rounds)
                    for each in profiled:
                        each.run(images, profile=done < runs + _WARM_UP)
                tries.append([each.times() for each in profiled])
        return min(tries, key=farthest)
    except Exception as error:  # pybind's exception types are not exported; this is the one boundary to them
        if isinstance(error, TocomError):
            raise
        raise EngineError(f"ONNX Runtime cannot profile the degrees: {one_line(error)}") from error


class _Profiled:
    """A degree's session, which runs with the profiler first and without it then."""

    def __init__(self, bundle: Bundle, degree: int, threads: int, folder: Path) -> None:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / f"degree-{degree}")
        self._session = open_session(bundle.read_onnx(degree), bundle.path, options)
        self._degree, self._blocks = degree, len(bundle.degrees[degree].token_counts) - 1
        self._events: list[dict[str, Any]] = []
        self._plain_ms: list[float] = []

    def run(self, images: NDArray[Any], *, profile: bool) -> None:
        if not profile and not self._events:
            log = Path(self._session.end_profiling())  # the session goes on without the profiler
            self._events = json.loads(log.read_text(encoding="utf-8"))
        begin = time.perf_counter()
        self._session.run(None, {"images": images})
        if not profile:
            self._plain_ms.append((time.perf_counter() - begin) * 1e3)

    def times(self) -> BlockTimes:
        return split_events(self._degree, self._events, blocks=self._blocks, skip=_WARM_UP, plain_ms=self._plain_ms)


def split_events(
    degree: int,
    events: Sequence[Mapping[str, Any]],
    *,
    blocks: int,
    skip: int = 0,
    plain_ms: Sequence[float] = (),
) -> BlockTimes:
    """Return the times per block from the events of a profile, in the order of execution.

    A block of a Vision Transformer starts at its first layer norm and its MLP at the second, so the layer norms part
    the run; one more stands after the blocks, and in some models one before.

    Args:
        degree: The degree.
        events: As ONNX Runtime writes them: ``cat``, ``name``, ``dur`` in microseconds, ``args``.
        blocks: Transformer blocks.
        skip: Runs at the start that do not count.
        plain_ms: Times of the same inference without the profiler: what it takes itself is taken off.
    """
    runs: list[list[tuple[str, float]]] = [[]]
    for event in sorted(events, key=lambda event: event.get("ts", 0)):
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            runs[-1].append((str(event["args"].get("op_name")), float(event["dur"]) / 1e3))
        elif event.get("name") == "model_run":
            # It is written with its beginning as its time, so it opens a run.
            runs.append([])
    counted = [run for run in runs if run][skip:]
    if not counted:
        return BlockTimes(degree, (), 0.0, whole=False)
    ops = [op for op, _ in counted[0]]
    # Every run does the same ops in the same order; the median of each is not moved by one interrupted run. Scaled to
    # the median of the runs, because noise that hits another op every time is in no op's median.
    table = np.array([[ms for _, ms in run] for run in counted if [op for op, _ in run] == ops])
    times = np.median(table, axis=0)
    times *= np.median(table.sum(axis=1)) / max(times.sum(), 1e-9)
    if len(plain_ms):
        # Of the fastest runs: other load only ever adds.
        times = np.maximum(times - max(table.sum(axis=1).min() - min(plain_ms), 0.0) / len(ops), 0.0)
    # Two norms a block; what is left stands before (one, when there are two) and after the blocks.
    rest = sum(op in _NORMS for op in ops) - 2 * blocks
    whole = rest in (0, 1, 2)
    rows = [dict.fromkeys(KINDS[:-1], 0.0) for _ in range(blocks if whole else 1)]
    outside, seen = 0.0, -1 if rest == 2 else 0
    for op, ms in zip(ops, times.tolist(), strict=True):
        seen += op in _NORMS
        kind = "matching and merging" if op in _MATCHING else "MLP" if seen % 2 == 0 and whole else "attention"
        block = (seen - 1) // 2 if whole else 0
        if whole and (seen < 1 or block >= blocks):
            outside += ms
        else:
            rows[block][kind] += ms
    return BlockTimes(degree, tuple(rows), outside, whole)

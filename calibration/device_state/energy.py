"""Energy of one inference per degree: blocks long enough for the device's slow counter, in random order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from tocom.calibration.device_state.reader import CombinedReader
from tocom.formats.measurements import Energy
from tocom.formats.pixels import random_images
from tocom.runtime import Runtime
from tocom.system.progress import Progress, silent

__all__ = ["EnergyMeter", "measure_energy"]

_SAMPLE_S = 0.02


class EnergyMeter:
    """Measures the energy between :meth:`start` and :meth:`stop`: by a counter, or by the power sampled meanwhile.

    The power is sampled by a thread of its own: between inferences a GPU is idle, and would always be seen so.

    Args:
        reader: What measures it.
        clock: Seconds; injected by tests.
    """

    def __init__(self, reader: CombinedReader, clock: Callable[[], float] = time.perf_counter) -> None:
        self._reader, self._clock = reader, clock
        self._counted = reader.energy_mj() is not None
        self._done = threading.Event()
        self._samples: list[tuple[float, float]] = []
        self._thread: threading.Thread | None = None
        self._begin_mj = 0.0

    @property
    def source(self) -> str | None:
        """What measures the energy; None where nothing does."""
        if self._counted:
            return self._reader.name
        return "board power, sampled" if self._watts() is not None else None

    def start(self) -> None:
        """Begin to count."""
        if self._counted:
            self._begin_mj = self._reader.energy_mj() or 0.0
            return
        self._samples.clear()
        self._done.clear()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the millijoules since :meth:`start`; 0 or less when the counter stood still or wrapped."""
        if self._counted:
            return (self._reader.energy_mj() or 0.0) - self._begin_mj
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        if len(self._samples) < 2:
            return 0.0
        pairs = zip(self._samples, self._samples[1:], strict=False)
        return sum((after[0] - before[0]) * (after[1] + before[1]) / 2 for before, after in pairs) * 1e3

    def _sample(self) -> None:
        while True:
            watts = self._watts()
            if watts is not None:
                self._samples.append((self._clock(), watts))
            if self._done.wait(_SAMPLE_S):
                break
        if (watts := self._watts()) is not None:
            self._samples.append((self._clock(), watts))

    def _watts(self) -> float | None:
        value = self._reader.read().get("board_power_w")
        return value if isinstance(value, (int, float)) else None


def measure_energy(
    runtime: Runtime,
    reader: CombinedReader,
    *,
    block_s: float = 1.0,
    blocks: int = 3,
    batch: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[int, Energy]:
    """Return the energy of one inference per degree; nothing where the device does not tell.

    Counters move every 10 to 100 ms, an inference is shorter: so a degree runs for ``block_s`` at a time without a
    pause, ``blocks`` times, the blocks of all degrees in random order. The idle share of the device is part of it.

    Args:
        runtime: A warm runtime.
        reader: What measures the energy.
        block_s: Least seconds of a block.
        blocks: Blocks per degree.
        batch: Images per inference; None takes the bundle's optimal batch.
        seed: Seed of the order and the images' values.
        progress: Called after every block.

    Raises:
        EngineError: A degree does not run.
    """
    meter = EnergyMeter(reader)
    source = meter.source
    if source is None:
        return {}
    generator = np.random.default_rng(seed)
    chosen = list(runtime.degrees)
    size = runtime.bundle.batch[1] if batch is None else batch
    images = random_images(runtime.bundle.manifest["input"], size, generator)
    used = dict.fromkeys(chosen, 0.0)
    counts = dict.fromkeys(chosen, 0)
    order = generator.permutation(np.repeat(chosen, blocks)).tolist()
    for done, degree in enumerate(order):
        ran, end = 0, time.perf_counter() + block_s
        meter.start()
        while time.perf_counter() < end:
            runtime.infer(images, degree=degree)
            ran += 1
        millijoules = meter.stop()
        if millijoules > 0:
            used[degree] += millijoules
            counts[degree] += ran
        progress("energy", done + 1, len(order))
    return {
        degree: Energy(used[degree] / counts[degree], counts[degree], source) for degree in chosen if counts[degree]
    }

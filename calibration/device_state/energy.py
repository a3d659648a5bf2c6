"""Energy of one inference per degree: blocks long enough for the device's slow counter, in random order."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tocom.calibration.device_state.reader import StateReader
from tocom.formats.measurements import Energy
from tocom.formats.pixels import random_images
from tocom.runtime import Runtime
from tocom.system.progress import Progress, silent

__all__ = ["EnergyMeter", "measure_energy"]

_SAMPLE_S = 0.02


class EnergyMeter:
    """Measures the energy between :meth:`start` and :meth:`stop`: by a counter, or by the power sampled meanwhile.

    Args:
        reader: What measures it.
        clock: Seconds; injected by tests.
    """

    def __init__(self, reader: StateReader, clock: Callable[[], float] = time.perf_counter) -> None:
        self._reader, self._clock = reader, clock
        self._counted = reader.energy_mj() is not None
        self._samples: list[tuple[float, float]] = []
        self._begin_mj = 0.0

    @property
    def source(self) -> str | None:
        """What measures the energy; None where nothing does."""
        if self._counted:
            return self._reader.name
        return "board power, sampled" if "board_power_w" in self._reader.read() else None

    def start(self) -> None:
        """Begin to count."""
        if self._counted:
            self._begin_mj = self._reader.energy_mj() or 0.0
        else:
            self._samples.clear()
            self._sample()

    def tick(self) -> None:
        """Sample the power when it is time; call it between inferences. A counter needs no samples."""
        if not self._counted and self._clock() - self._samples[-1][0] >= _SAMPLE_S:
            self._sample()

    def stop(self) -> float:
        """Return the millijoules since :meth:`start`; 0 or less when the counter stood still or wrapped."""
        if self._counted:
            return (self._reader.energy_mj() or 0.0) - self._begin_mj
        self._sample()
        seconds, watts = np.array(self._samples).T
        return float((np.diff(seconds) * (watts[1:] + watts[:-1]) / 2).sum() * 1e3)

    def _sample(self) -> None:
        # A reading that fails repeats the last one.
        watts = self._reader.read().get("board_power_w", self._samples[-1][1] if self._samples else 0.0)
        self._samples.append((self._clock(), float(watts)))


def measure_energy(
    runtime: Runtime,
    reader: StateReader,
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
            meter.tick()
        millijoules = meter.stop()
        if millijoules > 0:
            used[degree] += millijoules
            counts[degree] += ran
        progress("energy", done + 1, len(order))
    return {
        degree: Energy(used[degree] / counts[degree], counts[degree], source) for degree in chosen if counts[degree]
    }

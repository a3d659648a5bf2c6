"""Records the device's state while something is measured, and marks what changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tocom.calibration.device_state.reader import CombinedReader
from tocom.formats.measurements import State, StateLog

__all__ = ["StateRecorder"]

# What a user or the system sets; a change in the middle makes a run two runs.
_MODE_KEYS = ("power_mode", "gpu_power_limit_w", "gpu_max_clock_mhz", "cpu_max_clock_mhz", "power_supply")
_MOST_READINGS = 200
_OTHER_CPU_SHARE = 0.1
# A tenth of the time is enough to move p95; one or two readings are the system's own.
_OTHER_READINGS = 0.1


class StateRecorder:
    """Reads the state now and then, and says what changed.

    Args:
        reader: What reads; None records nothing.
        every_s: Least seconds between two readings.
        clock: Seconds; injected by tests.
    """

    def __init__(
        self, reader: CombinedReader | None, *, every_s: float = 1.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._reader, self._every_s, self._clock = reader, every_s, clock
        self._begin = self._last = clock()
        self._readings: list[State] = []
        self._marks: list[str] = []
        self._start = self._read()
        self._mode = {key: self._start[key] for key in _MODE_KEYS if key in self._start}

    def tick(self) -> None:
        """Read the state when it is time; call it between timed inferences, never within."""
        now = self._clock()
        if now - self._last >= self._every_s:
            self._last = now
            self._keep()

    def finish(self, marks: Sequence[str] = ()) -> StateLog:
        """Return the log; ``marks`` come after those found here."""
        end = self._keep()
        step = max(-(-len(self._readings) // _MOST_READINGS), 1)
        return StateLog(self._start, end, tuple(self._readings[::step]), (*self._marks, *self._pressures(), *marks))

    def _read(self) -> State:
        return {} if self._reader is None else self._reader.read()

    def _keep(self) -> State:
        state = self._read()
        if not state:
            return state
        seconds = round(self._clock() - self._begin, 3)
        for key, before in self._mode.items():
            now = state.get(key, before)
            if now != before:
                self._marks.append(f"{key} changed from {before!r} to {now!r} after {seconds:.1f} s")
                self._mode[key] = now
        self._readings.append({"seconds": seconds, **state})
        return state

    def _pressures(self) -> list[str]:
        """Return marks for what lasted, rather than changed: throttling, other programs."""
        marks = []
        reasons_seen = [str(state["gpu_throttle"]) for state in self._readings if "gpu_throttle" in state]
        throttled = [text for text in reasons_seen if text != "none"]
        if throttled:
            reasons = ", ".join(sorted({reason for text in throttled for reason in text.split(", ")}))
            marks.append(f"the GPU was throttled ({reasons}) in {len(throttled)} of {len(self._readings)} readings")
        shares = sorted(float(state["other_cpu_share"]) for state in self._readings if "other_cpu_share" in state)
        if shares and shares[len(shares) // 2] > _OTHER_CPU_SHARE:
            marks.append(
                f"other programs used {shares[len(shares) // 2]:.0%} of the CPUs (median of {len(shares)} readings)"
            )
        elif (busy := sum(share > _OTHER_CPU_SHARE for share in shares)) > max(_OTHER_READINGS * len(shares), 2):
            marks.append(
                f"other programs used more than {_OTHER_CPU_SHARE:.0%} of the CPUs in {busy} of {len(shares)} readings"
            )
        return marks

"""Clocks, temperatures, power mode, load and energy from Linux' own files: any CPU, and the Jetson's GPU and rails.

The files are those that ``tegrastats`` and jetson-stats read too, so neither has to be installed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from tocom.formats.measurements import State
from tocom.system.cpu import power_mode
from tocom.system.files import text_of

__all__ = ["LinuxReader"]

# Rails that carry the whole board or module, by board generation; where none is there, the rails are added up.
_WHOLE_RAILS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0", "VIN")


class LinuxReader:
    """Reads ``/sys`` and ``/proc``.

    Args:
        root: Where they lie; another folder in tests.
        gpu: Read the integrated GPU of a Jetson, and count the whole board's power as the device's.
    """

    name = "sysfs"

    def __init__(self, root: Path | str = "/", *, gpu: bool = False) -> None:
        root = Path(root)
        self._proc, self._gpu = root / "proc", gpu
        sys = root / "sys"
        cpus = os.sched_getaffinity(0)
        self._policies = [
            folder for cpu in sorted(cpus) if (folder := sys / f"devices/system/cpu/cpu{cpu}/cpufreq").is_dir()
        ]
        self._cpus = {f"cpu{cpu}" for cpu in cpus}
        self._root = root
        self._zones = _named(sys.glob("class/thermal/thermal_zone*"), "type", "temp")
        self._packages = sorted(path for path in sys.glob("class/powercap/intel-rapl:*") if path.name.count(":") == 1)
        self._rails = _rails(sys)
        self._gpu_clocks = sorted(
            path for path in sys.glob("class/devfreq/*") if gpu and re.search(r"gpu|gv11b|ga10b|gp10b|gpc", path.name)
        )
        self._mains = sorted(sys.glob("class/power_supply/*/online"))
        self._ticks = self._cpu_ticks()

    def read(self) -> State:
        """Return what these files say now."""
        state: State = {}
        clocks = [khz / 1e3 for khz in _numbers(folder / "scaling_cur_freq" for folder in self._policies)]
        if not clocks:  # as in virtual machines on x86
            text = text_of(self._proc / "cpuinfo")
            found = re.findall(r"^processor\s*: (\d+)$.*?^cpu MHz\s*: ([\d.]+)$", text, re.MULTILINE | re.DOTALL)
            clocks = [float(mhz) for cpu, mhz in found if f"cpu{cpu}" in self._cpus]
        if clocks:
            state["cpu_clock_mhz"] = round(sum(clocks) / len(clocks), 1)
        if limits := _numbers(folder / "scaling_max_freq" for folder in self._policies):
            state["cpu_max_clock_mhz"] = round(min(limits) / 1e3, 1)
        for name, folder in self._zones.items():
            for celsius in _numbers([folder / "temp"]):
                if -40_000 < celsius < 200_000:  # sensors that are off give absurd values
                    state[f"{name}_temperature_c"] = round(celsius / 1e3, 1)
        if mode := power_mode(self._root):
            state["power_mode"] = mode
        if online := _numbers(self._mains):
            state["power_supply"] = "mains" if any(online) else "battery"
        for name, file in (("gpu_clock_mhz", "cur_freq"), ("gpu_max_clock_mhz", "max_freq")):
            if hertz := _numbers(folder / file for folder in self._gpu_clocks):
                state[name] = round(hertz[-1] / 1e6, 1)
        if (watts := self._board_watts()) is not None:
            state["board_power_w"] = round(watts, 3)
        state.update(self._load())
        return state

    def energy_mj(self) -> float | None:
        """Return the CPU packages' counters (RAPL) in millijoules, which wrap after hours; None where unreadable.

        For a GPU they say nothing, so then it is None.
        """
        if self._gpu or not self._packages:
            return None
        counters = _numbers(path / "energy_uj" for path in self._packages)
        return sum(counters) / 1e3 if len(counters) == len(self._packages) else None

    def _board_watts(self) -> float | None:
        watts = {}
        for label, (volts, amperes) in self._rails.items():
            if len(measured := _numbers((volts, amperes))) == 2:
                watts[label] = measured[0] * measured[1] / 1e6  # millivolts, milliamperes
        whole = next((watts[label] for label in _WHOLE_RAILS if label in watts), None)
        return whole if whole is not None else (sum(watts.values()) if watts else None)

    def _load(self) -> State:
        """Return the shares of the usable CPUs' time since the last reading: busy, by other programs, stolen."""
        before, self._ticks = self._ticks, self._cpu_ticks()
        if before is None or self._ticks is None or self._ticks[0] - before[0] < 10:
            return {}
        every, busy, stolen, own = (now - then for now, then in zip(self._ticks, before, strict=True))
        return {
            "cpu_busy_share": round(busy / every, 3),
            "other_cpu_share": round(min(max((busy - own) / every, 0.0), 1.0), 3),
            "stolen_cpu_share": round(stolen / every, 3),
        }

    def _cpu_ticks(self) -> tuple[float, float, float, float] | None:
        every = busy = stolen = 0.0
        for line in text_of(self._proc / "stat").splitlines():
            name, *values = line.split()
            if name not in self._cpus or len(values) < 8:
                continue
            user, nice, system, idle, waiting, hard, soft, steal = (float(value) for value in values[:8])
            every += user + nice + system + idle + waiting + hard + soft + steal
            busy += user + nice + system + hard + soft
            stolen += steal
        own = os.times()
        return (every, busy, stolen, (own.user + own.system) * os.sysconf("SC_CLK_TCK")) if every else None


def _named(folders: object, name_file: str, value_file: str) -> dict[str, Path]:
    """Return the folders by the name that they carry; one of equal names gets a number."""
    found: dict[str, Path] = {}
    for folder in sorted(folders):  # type: ignore[call-overload]
        name = re.sub(r"[^a-z0-9]+", "_", (text_of(folder / name_file) or folder.name).lower()).strip("_")
        if (folder / value_file).exists():
            found[name if name not in found else f"{name}_{len(found)}"] = folder
    return found


def _rails(sys: Path) -> dict[str, tuple[Path, Path]]:
    """Return the INA3221's rails by label: the files of millivolts and milliamperes."""
    rails = {}
    for folder in sorted(sys.glob("class/hwmon/hwmon*")):
        if "ina" not in text_of(folder / "name"):
            continue
        for label in sorted(folder.glob("in*_label")):
            number = label.name[2:-6]
            pair = (folder / f"in{number}_input", folder / f"curr{number}_input")
            if all(path.exists() for path in pair):
                rails[text_of(label) or number] = pair
    return rails


def _numbers(paths: Iterable[Path]) -> list[float]:
    """Return the numbers in these files; one that cannot be read is left out."""
    found = []
    for path in paths:
        with contextlib.suppress(ValueError):
            found.append(float(text_of(path)))
    return found

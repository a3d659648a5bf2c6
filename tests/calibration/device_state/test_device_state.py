"""Device state: one contract for every reader, on this machine, on copied file trees, and on a scripted NVML."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_bundles import write_small_bundle

from tocom.calibration import calibrate
from tocom.calibration.device_state.energy import EnergyMeter, measure_energy
from tocom.calibration.device_state.linux import LinuxReader
from tocom.calibration.device_state.nvidia import NvmlReader
from tocom.calibration.device_state.reader import CombinedReader, open_reader
from tocom.calibration.device_state.recorder import StateRecorder
from tocom.formats.profile import Profile
from tocom.runtime import Runtime
from tocom.runtime import profiles as runtime_profiles

CPU = min(os.sched_getaffinity(0))
UNITS = ("_mhz", "_c", "_w", "_share", "_throttle", "_mode", "_supply")


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")
    return root


def desktop(root: Path) -> LinuxReader:
    """As on a desktop: cpufreq, an ACPI thermal zone, RAPL with one package and a subdomain."""
    cpu = f"sys/devices/system/cpu/cpu{CPU}/cpufreq"
    return LinuxReader(
        write_tree(
            root,
            {
                f"{cpu}/scaling_cur_freq": "3400000",
                f"{cpu}/scaling_max_freq": "4200000",
                "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "performance",
                "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
                "sys/class/thermal/thermal_zone0/temp": "47000",
                "sys/class/powercap/intel-rapl:0/energy_uj": "5000000",
                "sys/class/powercap/intel-rapl:0:0/energy_uj": "1000000",
                "sys/class/power_supply/AC/online": "1",
                "proc/stat": f"cpu 1 1 1 1 1 1 1 1\ncpu{CPU} 100 0 50 1000 0 0 0 10 0 0",
            },
        )
    )


def jetson(root: Path) -> LinuxReader:
    """As on an Orin: GPU clock under devfreq, an INA3221 with the whole module on VDD_IN, a zone that is off."""
    gpu, rails = "sys/class/devfreq/17000000.gpu", "sys/class/hwmon/hwmon1"
    return LinuxReader(
        write_tree(
            root,
            {
                f"{gpu}/cur_freq": "918000000",
                f"{gpu}/max_freq": "918000000",
                "sys/class/thermal/thermal_zone0/type": "gpu-thermal",
                "sys/class/thermal/thermal_zone0/temp": "51500",
                "sys/class/thermal/thermal_zone1/type": "cv0-thermal",
                "sys/class/thermal/thermal_zone1/temp": "-256000",
                f"{rails}/name": "ina3221",
                f"{rails}/in1_label": "VDD_IN",
                f"{rails}/in1_input": "5000",
                f"{rails}/curr1_input": "1800",
                f"{rails}/in2_label": "VDD_CPU_GPU_CV",
                f"{rails}/in2_input": "5000",
                f"{rails}/curr2_input": "700",
            },
        ),
        gpu=True,
    )


class ScriptedNvml:
    """What the reader calls of ``pynvml``, with one refusal, as older GPUs give.

    NVML counts its users: nvmlShutdown belongs to each nvmlInit that worked (nvml.h).
    """

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, names: tuple[str, ...] = ("NVIDIA A", "NVIDIA B", "NVIDIA B")) -> None:
        self.names, self.energy, self.reasons, self.users = names, 1000, 0x1, 0

    def nvmlInit(self) -> None:
        self.users += 1

    def nvmlShutdown(self) -> None:
        self.users -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return self.names[handle].encode()

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}{handle}{handle}"

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return 1000 * kind + handle

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 60

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 120_500

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return self.reasons

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        self.energy += 7
        return self.energy


def nvidia(_: Path) -> NvmlReader:
    reader = NvmlReader.open("NVIDIA B", ScriptedNvml())
    assert reader is not None
    return reader


READERS: dict[str, Callable[[Path], Any]] = {
    "this machine": lambda _: LinuxReader(),
    "nothing there": LinuxReader,
    "desktop": desktop,
    "jetson": jetson,
    "nvidia": nvidia,
    "combined": lambda root: CombinedReader([nvidia(root), desktop(root)]),
    "opened": lambda _: open_reader({"processor": "any"}),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_keeps_the_contract(name: str, tmp_path: Path) -> None:
    reader = READERS[name](tmp_path)
    for state in (reader.read(), reader.read()):
        for key, value in state.items():
            assert key.endswith(UNITS), key
            assert isinstance(value, (int, float, str))
            assert not isinstance(value, bool)
    energy = [reader.energy_mj(), reader.energy_mj()]
    assert energy == [None, None] or (energy[0] is not None and energy[1] is not None and energy[1] >= energy[0])


def test_a_desktop(tmp_path: Path) -> None:
    reader = desktop(tmp_path)
    (tmp_path / "proc/stat").write_text(f"cpu{CPU} 140 0 60 1040 0 0 0 20 0 0\n")
    state = reader.read()
    assert (state["cpu_clock_mhz"], state["cpu_max_clock_mhz"]) == (3400.0, 4200.0)
    assert state["x86_pkg_temp_temperature_c"] == 47.0
    assert (state["power_mode"], state["power_supply"]) == ("performance", "mains")
    assert (state["cpu_busy_share"], state["stolen_cpu_share"]) == (0.5, 0.1)
    assert reader.energy_mj() == 5000.0
    assert LinuxReader(tmp_path, gpu=True).energy_mj() is None


def test_a_jetson(tmp_path: Path) -> None:
    state = jetson(tmp_path).read()
    assert (state["gpu_clock_mhz"], state["gpu_thermal_temperature_c"]) == (918.0, 51.5)
    assert state["board_power_w"] == 9.0
    assert "cv0_thermal_temperature_c" not in state


def test_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = ScriptedNvml()
    reader = NvmlReader.open("NVIDIA B", nvml)
    assert reader is not None
    assert reader.read() == {
        "gpu_clock_mhz": 1001,
        "gpu_memory_clock_mhz": 2001,
        "gpu_temperature_c": 60,
        "gpu_power_w": 120.5,
        "gpu_throttle": "none",
    }
    nvml.reasons = 0x20 | 0x4
    assert reader.read()["gpu_throttle"] == "power cap, thermal"
    for visible in ("GPU-222", "2,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        second = NvmlReader.open("NVIDIA B", nvml)
        assert second is not None
        assert second.read()["gpu_clock_mhz"] == 1002
    assert nvml.users == 2
    del reader, second
    gc.collect()
    assert nvml.users == 0


def test_a_gpu_that_nvml_does_not_know(caplog: pytest.LogCaptureFixture) -> None:
    nvml = ScriptedNvml()
    assert NvmlReader.open("Orin (nvgpu)", nvml) is None
    assert "no GPU named 'Orin (nvgpu)'" in caplog.text
    gc.collect()
    assert nvml.users == 0


def test_the_real_nvml_without_a_driver_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert NvmlReader.open("any") is None
        assert "NVML does not start" in caplog.text
    else:
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
        reader = NvmlReader.open(name)
        assert reader is not None
        assert "gpu_temperature_c" in reader.read()


class Scripted:
    """A reader whose states are given, one per reading; the last one stays."""

    name = "scripted"

    def __init__(self, *states: dict[str, Any], energy: list[float] | None = None) -> None:
        self.states, self.energy = list(states), energy

    def read(self) -> dict[str, Any]:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def energy_mj(self) -> float | None:
        return None if self.energy is None else self.energy.pop(0) if len(self.energy) > 1 else self.energy[0]


def test_a_mode_that_changes_in_the_middle_is_marked_and_time_is_kept() -> None:
    now = [0.0]
    reader = Scripted({"power_mode": "MAXN"}, {"power_mode": "MAXN"}, {"power_mode": "15W"})
    recorder = StateRecorder(reader, every_s=1.0, clock=lambda: now[0])
    for now[0] in (0.4, 1.0, 1.5, 2.2, 3.3):
        recorder.tick()
    log = recorder.finish(["and more"])
    assert log.marks == ("power_mode changed from 'MAXN' to '15W' after 2.2 s", "and more")
    assert (log.start["power_mode"], log.end["power_mode"]) == ("MAXN", "15W")
    assert [reading["seconds"] for reading in log.readings] == [1.0, 2.2, 3.3, 3.3]


def test_throttling_and_other_programs_are_marked() -> None:
    now = [0.0]
    reader = Scripted({"gpu_throttle": "thermal", "other_cpu_share": 0.4})
    recorder = StateRecorder(reader, every_s=1.0, clock=lambda: now[0])
    for now[0] in (1.0, 2.0):
        recorder.tick()
    assert recorder.finish().marks == (
        "the GPU was throttled (thermal) in 3 of 3 readings",
        "other programs used 40% of the CPUs (median of 3 readings)",
    )


@pytest.mark.parametrize(("busy", "marks"), [(2, 0), (3, 1)])
def test_a_burst_of_other_programs_is_marked(busy: int, marks: int) -> None:
    now = [0.0]
    shares = [0.02] * 15 + [0.36] * busy + [0.02] * (5 - busy)
    recorder = StateRecorder(Scripted(*({"other_cpu_share": share} for share in shares)), clock=lambda: now[0])
    for now[0] in range(1, 19):
        recorder.tick()
    expected = f"other programs used more than 10% of the CPUs in {busy} of 19 readings"
    assert recorder.finish().marks == (expected,) * marks


def test_readings_are_thinned_and_none_is_fine() -> None:
    now = [0.0]
    recorder = StateRecorder(Scripted({"cpu_clock_mhz": 1.0}), every_s=1.0, clock=lambda: now[0])
    for now[0] in range(1, 1001):
        recorder.tick()
    assert 100 <= len(recorder.finish().readings) <= 200
    assert StateRecorder(None).finish(["x"]).marks == ("x",)


def test_energy_from_a_counter_and_from_sampled_power(tmp_path: Path) -> None:
    meter = EnergyMeter(Scripted({}, energy=[0.0, 100.0, 350.0]))
    assert meter.source == "scripted"
    meter.start()
    assert meter.stop() == 250.0
    now = iter(range(100))
    sampled = EnergyMeter(Scripted({"board_power_w": 4.0}), clock=lambda: float(next(now)))
    assert sampled.source == "board power, sampled"
    sampled.start()
    millijoules = sampled.stop()
    assert millijoules % 4000 == 0
    assert millijoules >= 4000
    bundle = write_small_bundle(tmp_path / "b")
    with Runtime.open(bundle.path) as runtime:
        assert measure_energy(runtime, Scripted({})) == {}
        counter = Scripted({}, energy=[float(100 * i) for i in range(100)])
        energy = measure_energy(runtime, counter, block_s=0.01, blocks=2)
    assert set(energy) == {0, 4, 8}
    assert all(e.millijoules == pytest.approx(200 / e.count) and e.source == "scripted" for e in energy.values())


class Busy(Scripted):
    """A board that draws 10 W while an inference runs, and 1 W before and after."""

    busy = False

    def read(self) -> dict[str, Any]:
        return {"board_power_w": 10.0 if self.busy else 1.0}


def test_power_is_sampled_while_an_inference_runs() -> None:
    board = Busy({})
    meter = EnergyMeter(board)
    meter.start()
    board.busy = True
    time.sleep(0.3)
    board.busy = False
    assert meter.stop() > 1500  # of 3 joules; one that looks between inferences alone sees 300 millijoules


def test_clocks_of_processors_that_may_not_be_used_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    processors = ((CPU, 2500.0), (100_000, 900.0))
    text = "".join(f"processor\t: {cpu}\nmodel name\t: any\ncpu MHz\t\t: {mhz}\n\n" for cpu, mhz in processors)
    (tmp_path / "proc/cpuinfo").write_text(text)
    assert LinuxReader(tmp_path).read()["cpu_clock_mhz"] == 2500.0


def test_a_profile_of_another_mode_is_not_used_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = write_small_bundle(tmp_path / "b")
    monkeypatch.setattr(runtime_profiles, "power_mode", lambda: "MAXN")
    profile = calibrate(bundle.path, samples=2)
    assert profile.device["power_mode"] == "MAXN"
    with Runtime.open(bundle.path) as runtime:
        assert runtime.profile == profile
    monkeypatch.setattr(runtime_profiles, "power_mode", lambda: "15W")
    with Runtime.open(bundle.path) as runtime:
        assert runtime.profile != profile
    assert "device power_mode is '15W', the profile has 'MAXN'" in caplog.text
    second = calibrate(bundle.path, samples=2)
    caplog.clear()
    with Runtime.open(bundle.path) as runtime:
        assert runtime.profile == second
    assert len(list((bundle.path / "profiles").glob("*.json"))) == 2
    assert "ignored" not in caplog.text


def test_a_doubtful_profile_is_named_when_it_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from dataclasses import replace

    bundle = write_small_bundle(tmp_path / "b")
    profile = calibrate(bundle.path, samples=2)
    assert profile.device_state is not None
    marked = replace(profile, device_state=replace(profile.device_state, marks=("the mode changed",)))
    assert Profile.load(marked.save(bundle.path)) == marked
    with Runtime.open(bundle.path) as runtime:
        assert runtime.profile == marked
    assert "is doubtful: the mode changed" in caplog.text

"""What names the device in profiles: read from the operating system, no library needed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from tocom.system.cgroups import cpu_quota
from tocom.system.files import text_of

__all__ = ["cpu_facts", "cpu_identity", "power_mode", "usable_cores"]

_GOVERNORS = "devices/system/cpu/cpufreq/policy*/scaling_governor"


def usable_cores(root: Path | str = "/") -> int:
    """Return the physical cores that this process may use; two hardware threads of one core count once.

    Those that it may run on, and no more than a container's CPU quota gives whole: a thread above the quota is stopped
    for the rest of each period, and with it the inference that waits for it.

    Args:
        root: Where ``/proc`` and ``/sys`` lie; another folder in tests.
    """
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = text_of(Path(root) / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings or str(cpu))
    quota = cpu_quota(root)
    return len(cores) if quota is None else max(min(len(cores), int(quota)), 1)


@cache
def cpu_identity() -> dict[str, str]:
    """Return what identifies this CPU device: processor, architecture, cores, system. It does not change."""
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": str(usable_cores()),
        "system": platform.system(),
    }


def power_mode(root: Path | str = "/") -> str | None:
    """Return the power mode that is set now; None where the system has none.

    On a Jetson the one that ``nvpmodel`` reports. Elsewhere the platform profile and the CPU governor, as far as the
    system has them, such as ``balanced, powersave``.

    Args:
        root: Where ``/sys`` lies; another folder in tests.
    """
    if mode := _nvpmodel():
        return mode
    sys = Path(root) / "sys"
    governors = sorted({text for path in sys.glob(_GOVERNORS) if (text := text_of(path))})
    profile = text_of(sys / "firmware" / "acpi" / "platform_profile")
    return ", ".join([*([profile] if profile else []), *governors]) or None


def cpu_facts(*keys: str) -> list[str]:
    """Return the lines of ``/proc/cpuinfo`` under these keys, in their order, each once; none without that file."""
    lines = list(dict.fromkeys(text_of(Path("/proc/cpuinfo")).splitlines()))
    return [line for key in keys for line in lines if line.startswith(key) and ":" in line]


def _processor() -> str:
    named = cpu_facts("model name", "Model", "Hardware")
    return named[0].split(":", 1)[1].strip() if named else platform.processor() or "unknown"


def _nvpmodel() -> str | None:
    """Return the mode that ``nvpmodel`` reports on a Jetson, None elsewhere."""
    tool = shutil.which("nvpmodel")
    if tool is None:
        return None
    try:
        output = subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next((line.split(":", 1)[1].strip() for line in output.splitlines() if "Power Mode" in line), None)

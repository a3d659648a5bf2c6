"""What names the device in profiles: read from the operating system, no library needed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

__all__ = ["cpu_identity", "usable_cores"]


def usable_cores() -> int:
    """Return the physical cores that this process may run on; two hardware threads of one core count once."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            siblings = str(cpu)
        cores.add(siblings.strip())
    return len(cores)


@cache
def cpu_identity() -> dict[str, str]:
    """Return what identifies this CPU device: processor, architecture, cores, system, power mode where one is set."""
    identity = {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": str(usable_cores()),
        "system": platform.system(),
    }
    if mode := _power_mode():
        identity["power_mode"] = mode
    return identity


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for key in ("model name", "Model", "Hardware"):
        for line in lines:
            if line.startswith(key) and ":" in line:
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _power_mode() -> str | None:
    """Return the mode that ``nvpmodel`` reports on a Jetson, None elsewhere."""
    tool = shutil.which("nvpmodel")
    if tool is None:
        return None
    try:
        output = subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next((line.split(":", 1)[1].strip() for line in output.splitlines() if "Power Mode" in line), None)

"""What the control groups of a container let this process use: CPUs and memory, in both versions of control groups.

Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max, memory.max, memory.current, memory.stat),
https://docs.kernel.org/scheduler/sched-bwc.html and https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tocom.system.files import text_of

__all__ = ["cpu_quota", "free_group_memory"]


def cpu_quota(root: Path | str = "/") -> float | None:
    """Return how many CPUs the control groups of this process let it use; None without a limit.

    Args:
        root: Where ``/proc`` and ``/sys`` lie; another folder in tests.
    """
    quotas = []
    for folder in _groups("cpu", Path(root)):
        given = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        with contextlib.suppress(ValueError, IndexError, ZeroDivisionError):
            if int(given[0]) > 0:  # "max", and -1 in the first version, set no limit
                quotas.append(int(given[0]) / int(given[1]))
    return min(quotas, default=None)


def free_group_memory(root: Path | str = "/") -> int | None:
    """Return the bytes that the control groups of this process still let it take; None without a limit.

    Args:
        root: Where ``/proc`` and ``/sys`` lie; another folder in tests.
    """
    free = []
    for folder in _groups("memory", Path(root)):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        stat = _words(folder / "memory.stat")
        with contextlib.suppress(ValueError, IndexError):
            # Cached files that were not read lately count as used, and go as soon as somebody needs the room.
            cached = int(stat[stat.index("inactive_file") + 1]) if "inactive_file" in stat else 0
            free.append(max(int(limit[0]) - max(int(used[0]) - cached, 0), 0))
    return min(free, default=None)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups that may limit the controller, its own and those above it."""
    lines = text_of(root / "proc/self/cgroup").splitlines()
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        group = PurePosixPath(path.lstrip("/"))
        mounts = (controllers, controller) if controllers else ("", "unified")
        for mount in dict.fromkeys(mounts):
            # Seen from a container, the path may be the host's, and is not there: its own group is what is mounted.
            for folder in (group, *group.parents):
                yield root / "sys/fs/cgroup" / mount / folder


def _words(path: Path) -> list[str]:
    return text_of(path).split()

"""What a container lets a process use, as both versions of control groups say it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tocom.system.cgroups import cpu_quota, free_group_memory
from tocom.system.cpu import usable_cores

V2_HOST = {"proc/self/cgroup": "0::/app.slice/one.service\n"}
V2 = {"proc/self/cgroup": "0::/\n"}
V1 = {"proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n3:cpuset:/docker/abc\n2:memory:/docker/abc\n0::/\n"}


def system(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        (V2, None),
        ({**V2, "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({**V2, "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({**V2_HOST, "sys/fs/cgroup/app.slice/one.service/cpu.max": "50000 100000\n"}, 0.5),
        # The tightest of those above counts.
        (
            {
                **V2_HOST,
                "sys/fs/cgroup/app.slice/one.service/cpu.max": "max 100000",
                "sys/fs/cgroup/app.slice/cpu.max": "300000 100000",
            },
            3.0,
        ),
        # The host's path, seen from inside a container that has no namespace of its own.
        ({**V2_HOST, "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1.0,
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({**V2, "sys/fs/cgroup/cpu.max": "nonsense"}, None),
        ({"proc/self/cgroup": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_cpu_quota(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(system(tmp_path, files)) == quota


@pytest.mark.parametrize(("given", "cores"), [("25000", 1), ("200000", 2), ("299000", 2), ("900000", 4), ("max", 4)])
def test_no_more_threads_than_the_quota_gives_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    assert usable_cores(system(tmp_path, {**V2, "sys/fs/cgroup/cpu.max": f"{given} 100000"})) == cores


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (V2, None),
        ({**V2, "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"}, None),
        (
            {
                **V2,
                "sys/fs/cgroup/memory.max": "1000\n",
                "sys/fs/cgroup/memory.current": "700\n",
                "sys/fs/cgroup/memory.stat": "anon 300\ninactive_file 400\nactive_file 0\n",
            },
            700,
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1200\n",
            },
            0,
        ),
    ],
)
def test_the_memory_that_is_left(tmp_path: Path, files: dict[str, str], free: int | None) -> None:
    assert free_group_memory(system(tmp_path, files)) == free

"""What this process holds, as the system tells it."""

from __future__ import annotations

from pathlib import Path


def resident_bytes() -> int:
    """Return this process's anonymous resident memory: what a leak grows, and a mapped file does not."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no RssAnon line")

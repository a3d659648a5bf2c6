"""How much memory is free, so that an engine that cannot fit is not even tried.

ONNX Runtime 1.31 may crash when memory ends while it loads or runs a session, and Linux kills a process that uses more
than there is. Neither can be caught afterwards.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tocom.runtime.memory import Need

__all__ = ["require_free"]

# Least address space to leave: thread stacks, the arena's next chunk, the interpreter's own growth.
_ADDRESS_MARGIN = 96 << 20
# Measured for DeiT-S, 84 MiB of weights: while a session loads, the address space grows by 2.8 times the weights (as
# read, as rearranged, as packed), the resident memory by 1.2.
_ADDRESS_COPIES_WHILE_LOADING, _RESIDENT_COPIES_WHILE_LOADING = 3.0, 1.5


def require_free(need: Need, *, mapped: bool) -> None:
    """Check that an engine can be loaded and run.

    Args:
        need: What the degree needs.
        mapped: Its weights are mapped from a file, already packed: they take address space, but no memory of their own.

    Raises:
        MemoryError: There is too little memory, or too little of a limited address space (``ulimit -v``).
    """
    besides = need.activation_bytes + need.overhead_bytes
    mapping = 1.0 if mapped else _ADDRESS_COPIES_WHILE_LOADING
    keeping = 0.0 if mapped else _RESIDENT_COPIES_WHILE_LOADING
    wanted = {
        "address space": (int(mapping * need.weight_bytes) + besides + _ADDRESS_MARGIN, _free_address_space()),
        "memory": (int(keeping * need.weight_bytes) + besides, _free_memory()),
    }
    for what, (least, free) in wanted.items():
        if free is not None and free < least:
            raise MemoryError(
                f"degree {need.degree} needs about {least >> 20} MiB of {what} while it loads, "
                f"{free >> 20} MiB are free"
            )


def _free_address_space() -> int | None:
    """Return the bytes that RLIMIT_AS leaves; None without a limit or where there is no such thing."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    with contextlib.suppress(OSError, ValueError, IndexError):
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        return max(limit - used, 0)
    return None


def _free_memory() -> int | None:
    """Return the bytes that the machine can give without swapping; None where it does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None

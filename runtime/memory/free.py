"""How much memory is free, so that an engine that cannot fit is not even tried.

ONNX Runtime 1.31 may crash when memory ends while it loads or runs a session, and Linux kills a process that uses more
than there is. Neither can be caught afterwards.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from tocom.runtime.memory.needs import Need
from tocom.system.cgroups import free_group_memory

__all__ = ["COMPILING", "MAPPED", "PACKING", "Loading", "require_free"]

# Least address space to leave: thread stacks, the arena's next chunk, the interpreter's own growth.
_ADDRESS_MARGIN = 96 << 20


@dataclass(frozen=True)
class Loading:
    """How many times its weights a degree takes while it loads.

    Attributes:
        address_copies: In address space.
        resident_copies: In memory of its own.
    """

    address_copies: float
    resident_copies: float


# Measured for DeiT-S, 84 MiB of weights: while a session of ONNX Runtime loads, the address space grows by 2.8 times
# the weights (as read, as rearranged, as packed), the resident memory by 1.2.
PACKING = Loading(3.0, 1.5)
# Weights that are mapped from a file, already packed: they take address space, but no memory of their own.
MAPPED = Loading(1.0, 0.0)
# The same model compiled by OpenVINO: 4.2 to 7.2 times the address space, as each thread takes some; 1.3 to 1.9 times
# the memory, of which the overhead of a degree counts for itself.
COMPILING = Loading(7.0, 1.2)


def require_free(need: Need, loading: Loading) -> None:
    """Check that an engine can be loaded and run.

    Args:
        need: What the degree needs.
        loading: How it is loaded.

    Raises:
        MemoryError: There is too little memory, or too little of a limited address space (``ulimit -v``).
    """
    besides = need.activation_bytes + need.overhead_bytes
    wanted = {
        "address space": (
            int(loading.address_copies * need.weight_bytes) + besides + _ADDRESS_MARGIN,
            _free_address_space(),
        ),
        "memory": (int(loading.resident_copies * need.weight_bytes) + besides, _free_memory()),
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
    """Return the bytes that the machine and the container can give without swapping; None where neither says."""
    free = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) << 10)
    in_group = free_group_memory()
    return min(free if in_group is None else [*free, in_group], default=None)

"""What CUDA refuses, as one readable line of one kind of error, whichever library was asked."""

from __future__ import annotations

import ctypes
import glob
import os

from tocom.errors import EngineError

__all__ = ["OLDEST_DRIVER", "check_gpu", "failed", "gone", "no_driver", "not_usable", "refused", "version_text"]

# cuGraphInstantiateWithFlags, the newest function that is called here, came with CUDA 11.4.
OLDEST_DRIVER = 11040

# What a process opens to reach a GPU: on desktops and servers, then on Jetson.
_NODES = ("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvhost-*", "/dev/nvmap", "/dev/nvgpu/*/*")


def no_driver(why: object) -> EngineError:
    """Return the error of a machine, or a container, without the driver's library."""
    return EngineError(
        f"There is no NVIDIA driver here ({' '.join(str(why).split())}). Install it; in a container pass the GPU in "
        "(docker run --gpus all, on Jetson --runtime nvidia)."
    )


def not_usable(otherwise: EngineError) -> EngineError:
    """Return why a package does not reach the driver: there is none, else what the package says."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return no_driver(error)
    return otherwise


def version_text(version: int) -> str:
    """Return a driver's version as people write it, from 1000 · major + 10 · minor."""
    return f"{version // 1000}.{version % 1000 // 10}"


def refused(what: str) -> EngineError:
    """Return the error of a GPU that cannot be opened; it names the device nodes that this user may not open."""
    nodes = [
        node for pattern in _NODES for node in sorted(glob.glob(pattern)) if not os.access(node, os.R_OK | os.W_OK)
    ]
    if nodes:
        shown = f"{', '.join(nodes[:3])}{', …' if len(nodes) > 3 else ''}"
        return EngineError(
            f"{what}. This user may not open {shown}: add it to the group that owns them ('ls -l {nodes[0]}'; on "
            "Jetson video and render), then log in again."
        )
    return EngineError(
        f"{what}. See whether 'nvidia-smi', on a Jetson 'tegrastats', shows the GPU, and whether a container was given "
        "it."
    )


def failed(what: str, out_of_memory: bool) -> Exception:
    """Return the error of a call on an open GPU: a MemoryError for a lack of memory, else an EngineError."""
    if out_of_memory:
        return MemoryError(what)
    return EngineError(
        f"{what}. Check the GPU with 'tocom doctor'. Some errors of CUDA stay until the process ends: when this one "
        "comes again, restart it."
    )


def gone(library: str, missing: str) -> EngineError:
    """Return the error of a driver that lacks a function."""
    return EngineError(
        f"The NVIDIA driver has no {missing}, which {library} needs: it is older than CUDA "
        f"{version_text(OLDEST_DRIVER)}. Update the driver (on a Jetson: JetPack)."
    )


def check_gpu(index: int, count: int, version: int) -> None:
    """Refuse a driver that is too old, and a GPU that is not there.

    Raises:
        EngineError: ``version`` is below :data:`OLDEST_DRIVER`, or ``index`` is not below ``count``.
    """
    if version < OLDEST_DRIVER:
        raise EngineError(
            f"The NVIDIA driver is one of CUDA {version_text(version)}; the runtime needs "
            f"{version_text(OLDEST_DRIVER)} or newer. Update the driver (on a Jetson: JetPack)."
        )
    if index >= count:
        raise refused(f"This machine shows {count} GPUs, number {index} was asked for")

"""One process at a time: an advisory lock on a file, released by the kernel when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tocom.errors import OutputError

__all__ = ["exclusive"]


@contextlib.contextmanager
def exclusive(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock ``path`` for the block, waiting for whoever holds it.

    The file stays behind: removing it would let two processes lock two files of one name.

    Args:
        path: The lock's file; made when missing.
        on_wait: Called once when another process holds the lock.

    Raises:
        OutputError: The file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OutputError(
            f"Cannot make the lock {path}: {error.strerror or error}. Check the folder's permissions and free space."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system that knows no locks: what is written there still appears whole or not at all
        yield
    finally:
        os.close(descriptor)

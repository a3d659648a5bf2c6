"""Libraries that are hashed and then loaded: from a private copy in memory, so that both see the same bytes.

A loader takes a path, and what stands at a path may be replaced or rewritten after it was hashed. So the bytes are
read once, hashed, and kept in a file in memory that is sealed: nobody can change it, this process neither.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from pathlib import Path

from tocom.errors import EngineError

__all__ = ["hold_library", "read_hashed"]

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

_lock = threading.Lock()
_held: dict[str, int] = {}


def read_hashed(path: Path, sha256: str) -> bytes:
    """Return the bytes that were hashed: the file may be another by now.

    Raises:
        EngineError: It cannot be read, or has another sha256.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}). Build it again: 'tocom build'.") from error
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        raise EngineError(
            f"{path} has {len(content)} bytes and sha256 {got}, expected is {sha256}: it was cut off or changed. "
            "Engines and op plugins can carry code, so it is not loaded. Build it again: 'tocom build'."
        )
    return content


def hold_library(path: Path, sha256: str) -> str:
    """Return a path, good in this process alone, to the bytes of a library that has this sha256.

    The same sha256 gives the same path as long as the process lives: a library that is loaded twice is one.

    Raises:
        EngineError: The file cannot be read, has another sha256, or cannot be copied into memory.
    """
    content = read_hashed(path, sha256)
    with _lock:
        if sha256 not in _held:
            _held[sha256] = _sealed_copy(content, path)
        return f"/proc/self/fd/{_held[sha256]}"


def _sealed_copy(content: bytes, path: Path) -> int:
    try:
        descriptor = os.memfd_create(path.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(content)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise EngineError(f"The op plugin library {path} cannot be copied into memory ({error.strerror}).") from error
    return descriptor

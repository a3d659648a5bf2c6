"""Files that appear whole or not at all: write beside the place, sync, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tocom.errors import OutputError

__all__ = [
    "FileState",
    "atomic_folder",
    "atomic_path",
    "check_writable",
    "file_state",
    "open_regular",
    "sha256_file",
    "sha256_open",
    "write_json",
]

_CHUNK_BYTES = 1 << 20

FileState = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of the last change of content and of anything: equal for an untouched file."""


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return sha256_open(file)


def sha256_open(file: BinaryIO) -> str:
    """Return the sha256 of an open file, from where it stands to its end.

    Read, not mapped: a mapped file that shrinks meanwhile would kill the process.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    while size := file.readinto(buffer):  # type: ignore[attr-defined]  # typeshed knows it of the classes alone
        digest.update(buffer[:size])
    return digest.hexdigest()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, unbuffered; never follow a link, never wait for a pipe.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def file_state(status: os.stat_result) -> FileState:
    """Return what changes when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; on success it is synced and takes the name, on an error it is removed.

    Raises:
        OutputError: The folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise _unwritable(path, error) from error
    beside = Path(name)
    try:
        yield beside
        _sync(beside)
        beside.chmod(0o644)
        beside.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` to fill; on success it takes the name, on an error it is removed.

    Args:
        path: The folder to make.
        overwrite: Replace ``path`` when it exists; without it, an existing folder with anything in it is an error.

    Raises:
        OutputError: ``path`` is a file, is not empty and may not be overwritten, or cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise OutputError(f"Cannot write the folder {path}: a file of that name is there. Choose another path.")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise OutputError(f"Cannot write the folder {path}: it is not empty. Choose another, or pass --overwrite.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield beside
        for file in beside.rglob("*"):
            _sync(file)
        beside.chmod(0o755)
        if path.exists():
            # rename() replaces only an empty folder, so the old one moves aside first and goes last.
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.replace(old)
            beside.replace(path)
            shutil.rmtree(old)
        else:
            beside.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_writable(folder: Path | str) -> None:
    """Make the folder and try to write in it: before long work, not after.

    Raises:
        OutputError: It cannot be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def write_json(path: Path | str, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically. NaN and infinity are refused: they are no JSON."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> OutputError:
    if isinstance(error, OutputError):
        return error
    reason = error.strerror or str(error)
    return OutputError(
        f"Cannot write {path}: {reason}. Check the folder's permissions and free space, or choose another."
    )

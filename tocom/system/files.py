"""Files that appear whole or not at all: write beside the target, sync, rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
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
    "read_most",
    "read_regular",
    "remove_stale",
    "scratch_folder",
    "sha256_file",
    "sha256_open",
    "text_of",
    "write_json",
]

_CHUNK_BYTES = 1 << 20
_SUFFIX = ".tocom-part"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# What a file system answers to a call that it does not know.
_NOT_KNOWN = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF)

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
        OSError: It cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_regular(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file; never follow a link, never wait for a pipe.

    Raises:
        OSError: It cannot be opened, is not a regular file, or has more than ``most`` bytes; see its ``strerror``.
    """
    with open_regular(path) as file:
        return read_most(file, most)


def read_most(file: BinaryIO, most: int) -> bytes:
    """Return an open file's bytes, to its end.

    Raises:
        OSError: It cannot be read, or has more than ``most`` bytes.
    """
    pieces, left = [], most + 1
    while left > 0 and (piece := file.read(min(left, 1 << 24))):
        pieces.append(piece)
        left -= len(piece)
    if left <= 0:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes")
    return b"".join(pieces)


def file_state(status: os.stat_result) -> FileState:
    """Return what changes when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; on success it is synced and takes the name, on an error it is removed.

    A kill leaves the old file or the new one, and at most a hidden file beside, which the next call for the same path
    removes.

    Raises:
        OutputError: The folder cannot be written to, ``path`` is a folder, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder of that name is there")
        remove_stale(path.parent, path.name)
        beside, lock = _claim(path, folder=False)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield beside
        _sync(beside)
        _set_mode(beside, 0o644)
        beside.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        beside.unlink(missing_ok=True)
        os.close(lock)


@contextlib.contextmanager
def atomic_folder(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` to fill; on success it takes the name, on an error it is removed.

    A kill leaves the old folder or the new one, and at most a hidden folder beside, which the next call for the same
    path removes. A folder that cannot be exchanged for another, such as a mounted volume or the one that the process
    stands in, is filled from a hidden folder inside it, its JSON files (the manifests) last: a kill in that moment
    leaves a folder without a manifest.

    Args:
        path: The folder to make.
        overwrite: Replace ``path`` when it exists; without it, an existing folder with anything in it is an error.

    Raises:
        OutputError: ``path`` is a file, is not empty and may not be overwritten, or cannot be written.
    """
    shown = Path(path)
    try:
        path = Path(os.path.realpath(path))
        if path.exists() and not path.is_dir():
            raise OutputError(f"Cannot write the folder {shown}: a file of that name is there. Choose another path.")
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path / "new" if _is_fixed(path) else path
        remove_stale(target.parent, target.name)
        if path.is_dir() and _entries(path) and not overwrite:
            raise OutputError(f"Cannot write the folder {shown}: it is not empty. Choose another, or pass --overwrite.")
        beside, lock = _claim(target, folder=True)
    except OSError as error:
        raise _unwritable(shown, error) from error
    try:
        yield beside
        for file in (*beside.rglob("*"), beside):
            _sync(file)
        _set_mode(beside, 0o755)
        if path.exists() and not overwrite and any(entry != beside for entry in _entries(path)):
            raise OutputError(f"Cannot write the folder {shown}: another process wrote it meanwhile. It was kept.")
        if beside.parent == path:
            _fill(path, beside)
        elif path.exists():
            _swap(beside, path)  # the old folder is now beside, and goes in the end
        else:
            beside.replace(path)
        _sync(path if beside.parent == path else path.parent)
    except OSError as error:
        raise _unwritable(shown, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """Yield an empty folder of this user alone, in the system's folder for such, and remove it in the end.

    A kill leaves it there; the next call with the same name removes what dead processes left.

    Raises:
        OutputError: It cannot be made.
    """
    target = Path(tempfile.gettempdir()) / name
    try:
        remove_stale(target.parent, target.name)
        folder, lock = _claim(target, folder=True)
    except OSError as error:
        raise _unwritable(target.parent, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


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
    """Write ``content`` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _claim(path: Path, *, folder: bool) -> tuple[Path, int]:
    """Make a hidden file or folder beside ``path`` and lock it; return it and the descriptor that holds the lock.

    The kernel drops the lock when this process dies, however it dies: that is how the next one knows it for stale.
    """
    while True:
        if folder:
            name = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
            descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
        _lock(descriptor, wait=True)
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(name)):
                return Path(name), descriptor
        except FileNotFoundError:
            pass  # taken for stale between its making and its lock
        os.close(descriptor)


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Remove what dead processes left in ``folder``, of ``name`` or any: what has our naming and nobody has locked."""
    for left in folder.glob(f".{'*' if name is None else glob.escape(name)}.????????{_SUFFIX}"):
        try:
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile, or not ours to touch
        try:
            if _lock(descriptor, wait=False):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Lock; return whether it worked. A file system that knows no locks refuses: nothing is taken for stale there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _is_fixed(path: Path) -> bool:
    """Return whether an existing folder cannot be exchanged for another of its name."""
    if not path.is_dir():
        return False
    # A bind mount of the same file system is not a mount to os.path.ismount.
    mounts = Path("/proc/self/mountinfo")
    mounted = mounts.read_text(encoding="utf-8", errors="surrogateescape") if mounts.exists() else ""
    points = {line.split(" ", 5)[4].replace("\\040", " ") for line in mounted.splitlines()}
    stands_in = path == Path.cwd() or path in Path.cwd().parents
    return stands_in or os.path.ismount(path) or str(path) in points or not os.access(path.parent, os.W_OK)


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, except what a file system brings along."""
    return [entry for entry in folder.iterdir() if entry.name != "lost+found"]


def _fill(folder: Path, new: Path) -> None:
    """Put what is in ``new``, a folder inside ``folder``, in the place of all else there.

    Its JSON files, the manifests, go first and come last.
    """

    def order(entry: Path) -> tuple[bool, str]:
        return entry.suffix == ".json", entry.name

    for old in sorted(_entries(folder), key=order, reverse=True):
        if old != new:
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    for entry in sorted(new.iterdir(), key=order):
        entry.replace(folder / entry.name)


def _swap(new: Path, path: Path) -> None:
    """Exchange two folders in one step, so that at every moment one of them stands at ``path``."""
    libc = ctypes.CDLL(None, use_errno=True)
    exchange = getattr(libc, "renameat2", None)
    if exchange is not None:
        if exchange(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in _NOT_KNOWN:
            raise OSError(code, os.strerror(code), str(path))
    # A file system that cannot exchange: the old one moves aside first, under a name that nothing removes by itself.
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    path.replace(old)
    new.replace(path)
    shutil.rmtree(old)


def _sync(path: Path) -> None:
    """Have the kernel write a file or folder to the disk; some file systems do not know that, mostly of folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_KNOWN:
            raise
    finally:
        os.close(descriptor)


def _set_mode(path: Path, mode: int) -> None:
    """Set the permissions where the file system has any."""
    try:
        path.chmod(mode)
    except OSError as error:
        if error.errno not in (errno.EPERM, *_NOT_KNOWN):
            raise


def _unwritable(path: Path, error: OSError) -> OutputError:
    if isinstance(error, OutputError):
        return error
    reason = error.strerror or str(error)
    return OutputError(
        f"Cannot write {path}: {reason}. Check the folder's permissions and free space, or choose another."
    )


def text_of(path: Path) -> str:
    """Return what a file of the system says; nothing where it is not there, or not to be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tocom.errors import OutputError
from tocom.system import files
from tocom.system.files import atomic_folder, atomic_path, check_writable, sha256_file, write_json


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    """Make writing fail half-way, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    with atomic_path(path) as beside:
        assert beside.parent == path.parent
        beside.write_bytes(b"content")
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as beside:  # noqa: PT012
        beside.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.fault("no room while a file is written", outcome="OutputError; the old file stays")
def test_no_room_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with (
        files_no_larger_than(100),
        pytest.raises(OutputError, match=r"Cannot write .*file: File too large\. Check the folder's permissions"),
        atomic_path(path) as beside,
    ):
        beside.write_bytes(bytes(1000))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for path in (tmp_path / "file" / "below", Path("/proc/none/file"), tmp_path / "folder"):
        with pytest.raises(OutputError, match=f"Cannot write {path}"), atomic_path(path) as beside:
            beside.write_text("new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "inner"]


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bundle"
    with atomic_folder(path) as beside:
        (beside / "inner").mkdir()
        (beside / "inner" / "file").write_text("content")
        assert not path.exists()
    assert (path / "inner" / "file").read_text() == "content"
    assert path.stat().st_mode & 0o777 == 0o755
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old").write_text("old")
    expected = OutputError if error is OSError else error
    with pytest.raises(expected), atomic_folder(path, overwrite=True) as beside:  # noqa: PT012
        (beside / "new").write_text("half")
        raise error("stopped")
    assert [each.name for each in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_overwriting_a_folder_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    with atomic_folder(path) as beside:  # empty: nothing is lost
        (beside / "first").write_text("1")
    with (
        pytest.raises(OutputError, match=r"it is not empty\. Choose another, or pass --overwrite"),
        atomic_folder(path),
    ):
        pytest.fail("it must not get here")
    with atomic_folder(path, overwrite=True) as beside:
        (beside / "second").write_text("2")
    assert [each.name for each in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_a_folders_place(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("kept")
    for overwrite in (False, True):
        with (
            pytest.raises(OutputError, match="a file of that name is there"),
            atomic_folder(tmp_path / "bundle", overwrite=overwrite),
        ):
            pytest.fail("it must not get here")
    assert (tmp_path / "bundle").read_text() == "kept"


def test_check_writable(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        with pytest.raises(OutputError, match=f"Cannot write {folder}"):
            check_writable(folder)


def test_json_is_whole_and_is_json(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_json(path, {"p95_ms": 1.5, "name": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"p95_ms": 1.5, "name": "é"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["p95_ms"] == 1.5
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (2 << 20) + 7])
def test_sha256_is_of_every_byte(tmp_path: Path, size: int) -> None:
    content = bytes(index % 251 for index in range(1000)) * (size // 1000 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()


KILLED = """
import os, signal, sys
from pathlib import Path
from tocom.system.files import atomic_folder, atomic_path
with (atomic_folder if sys.argv[1] == "folder" else atomic_path)(Path(sys.argv[2])) as beside:
    (beside / "half" if sys.argv[1] == "folder" else beside).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.fault(
    "a process killed while it writes", outcome="the old output stays; the next run removes what the dead one left"
)
def test_what_a_killed_process_left_is_removed_by_the_next_and_a_living_ones_is_not(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "out", tmp_path / "out.other"
    for target in (path, other):
        killed = subprocess.run([sys.executable, "-c", KILLED, kind, str(target)], check=False)
        assert killed.returncode == -signal.SIGKILL
    (others,) = tmp_path.glob(".out.other.*")
    assert len(list(tmp_path.iterdir())) == 2
    assert not path.exists()
    writer = atomic_folder if kind == "folder" else atomic_path
    with writer(path) as living:
        (living / "whole" if kind == "folder" else living).write_text("living")
        with writer(path) as quicker:  # another writer of the same name, while the first one lives
            (quicker / "whole" if kind == "folder" else quicker).write_text("quicker")
            assert living.exists()
        if kind == "folder":
            shutil.rmtree(path)
    # Only what belongs to this name was looked at.
    assert sorted(tmp_path.iterdir()) == sorted([path, others])
    assert ((path / "whole") if kind == "folder" else path).read_text() == "living"


@pytest.mark.fault("two processes that write one folder", outcome="the first one's stays whole; the other is told")
def test_the_slower_of_two_writers_is_told(tmp_path: Path) -> None:
    with (  # noqa: PT012
        pytest.raises(OutputError, match="another process wrote it meanwhile"),
        atomic_folder(tmp_path / "out") as slower,
    ):
        (slower / "file").write_text("slower")
        with atomic_folder(tmp_path / "out") as quicker:
            (quicker / "file").write_text("quicker")
    assert (tmp_path / "out" / "file").read_text() == "quicker"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("exchange", [True, False], ids=["in one step", "where the file system cannot"])
def test_an_overwritten_folder_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *arguments, **options: object())
    path = tmp_path / "bundle"
    for text in ("first", "second"):
        with atomic_folder(path, overwrite=True) as beside:
            (beside / "file").write_text(text)
    assert (path / "file").read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_locks_works_and_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, "-c", KILLED, "file", str(tmp_path / "out")], check=False)

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with atomic_path(tmp_path / "out") as beside:
        beside.write_text("whole")
    assert (tmp_path / "out").read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_exchanged_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lost+found").mkdir()
    monkeypatch.chdir(tmp_path)
    with atomic_folder(".") as folder:
        (folder / "bundle.json").write_text("new")
        (folder / "inner").mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.json", "inner", "lost+found"]
    with pytest.raises(OutputError, match="not empty"), atomic_folder("."):
        raise AssertionError
    (tmp_path / "inner" / "file").write_text("old")
    with atomic_folder(tmp_path, overwrite=True) as folder:
        (folder / "other.bin").write_text("newer")
        assert (tmp_path / "bundle.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lost+found", "other.bin"]
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_mounted_volume_is_filled(tmp_path: Path, kind: str) -> None:
    volume = tmp_path / "a volume"
    (tmp_path / "source").mkdir()
    volume.mkdir()
    mount = "mount -t tmpfs none" if kind == "tmpfs" else f"mount --bind {shlex.quote(str(tmp_path / 'source'))}"
    script = (
        f"{mount} {shlex.quote(str(volume))} || exit 77; exec {shlex.quote(sys.executable)} -c '"
        "import sys; from pathlib import Path; from tocom.system.files import atomic_folder\n"
        'for text in ("one", "two"):\n'
        '    with atomic_folder(sys.argv[1], overwrite=text == "two") as folder: (folder / "f").write_text(text)\n'
        '    print((Path(sys.argv[1]) / "f").read_text(), [path.name for path in Path(sys.argv[1]).iterdir()])'
        f"' {shlex.quote(str(volume))}"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    if done.returncode in (1, 77) and "ermi" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr}")
    assert (done.returncode, done.stdout) == (0, "one ['f']\ntwo ['f']\n"), done.stderr


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "file").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "new"


# Some network and FUSE file systems refuse to sync folders, and some know no permissions.
_PRELOADED = """
#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
int fsync(int descriptor) {
    struct stat status;
    if (fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode)) { errno = EINVAL; return -1; }
    return syscall(SYS_fsync, descriptor);
}
int chmod(const char *path, mode_t mode) { errno = EPERM; return -1; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_file_system_that_syncs_no_folders(tmp_path: Path) -> None:
    source, library = tmp_path / "preloaded.c", tmp_path / "preloaded.so"
    source.write_text(_PRELOADED)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    script = (
        "import sys; from pathlib import Path; from tocom.system.files import atomic_folder, write_json\n"
        "with atomic_folder(sys.argv[1]) as folder: (folder / 'file').write_text('content')\n"
        "write_json(Path(sys.argv[1]) / 'file.json', [])"
    )
    out = tmp_path / "out"
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    subprocess.run([sys.executable, "-c", f"exec({script!r})", out], env=environment, check=True, timeout=60)
    assert sorted(path.name for path in out.iterdir()) == ["file", "file.json"]

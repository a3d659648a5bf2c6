"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tocom.errors import OutputError
from tocom.files import atomic_folder, atomic_path, check_writable, sha256_file, write_json


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

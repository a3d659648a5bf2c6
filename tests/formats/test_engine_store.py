"""Compact engines: back bit by bit, smaller, equal files for equal engines, and one line for each kind of damage."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocom.errors import EngineError
from tocom.formats.engine import engine_name, pack_engine, unpack_engine


def numbers(count: int, seed: int = 0) -> bytes:
    """Bytes that nothing compresses."""
    blocks = (hashlib.sha256(f"{seed}-{index}".encode()).digest() for index in range(count // 32 + 1))
    return b"".join(blocks)[:count]


TEXT = b"".join(b"  value.x = load(%d);\n" % index for index in range(20_000))


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, bytes]:
    content = numbers(300_000) + TEXT + numbers(200_001, seed=1)
    path = tmp_path / "degree-08.engine.zip"
    pack_engine(memoryview(content), path)
    return path, content


@settings(max_examples=50, deadline=None)
@given(
    parts=st.lists(st.tuples(st.booleans(), st.integers(0, 150_000)), max_size=5),
)
def test_whatever_is_packed_comes_back(tmp_path_factory, parts):
    content = b"".join(TEXT[:size] if text else numbers(size, seed=size) for text, size in parts)
    path = tmp_path_factory.mktemp("engine") / "x.zip"
    pack_engine(memoryview(content), path)
    assert unpack_engine(path.read_bytes(), len(content), path) == content


def test_text_is_deflated_and_numbers_are_not(packed):
    path, content = packed
    with zipfile.ZipFile(path) as archive:
        kinds = [kind for kind, _ in itertools.groupby(member.compress_type for member in archive.infolist())]
    assert kinds == [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED]
    assert path.stat().st_size < len(content) - len(TEXT) // 2


def test_equal_engines_are_equal_files(packed, tmp_path):
    path, content = packed
    pack_engine(memoryview(content), tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()


@pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed")
def test_unzip_gives_the_engine_back(packed):
    path, content = packed
    assert subprocess.run(["unzip", "-p", path], capture_output=True, check=True).stdout == content


def test_damage_is_one_line(packed):
    path, content = packed
    stored = path.read_bytes()
    middle = len(stored) // 2
    damages = {
        "cannot be unpacked": stored[:-40],
        "holds 0 bytes": b"PK\x05\x06" + bytes(18),
        r"cannot be unpacked \(File is not a zip file\)": b"no engine",
        r"cannot be unpacked \(Bad CRC|cannot be unpacked \(Error": (
            stored[:middle] + bytes([stored[middle] ^ 1]) + stored[middle + 1 :]
        ),
    }
    for message, damaged in damages.items():
        with pytest.raises(EngineError, match=message) as caught:
            unpack_engine(damaged, len(content), path)
        assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match=rf"holds {len(content)} bytes, its sidecar says 7: it was changed"):
        unpack_engine(stored, 7, path)


def test_names():
    assert engine_name(8) == "degree-08.engine"
    assert engine_name(8, compact=True) == "degree-08.engine.zip"

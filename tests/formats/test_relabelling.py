"""Labels as people write them, and ``tocom relabel``."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_bundles import CLASSES, write_small_bundle

from tocom.cli.model_options import parse_size, read_labels
from tocom.errors import DataError, RequestError
from tocom.formats.bundle import Bundle
from tocom.formats.measurements import DegreeProfile, Latency
from tocom.formats.profile import Profile, find_profiles
from tocom.formats.relabelling import relabel

NAMES = [f"class {index}" for index in range(CLASSES)]


def profile(bundle: Bundle) -> Profile:
    latency = Latency(10, 1.0, 2.0, 3.0, 4.0)
    return Profile(
        device={"cpu": "x"}, backend="onnxruntime", precision="fp32", batch=1, threads=1,
        bundle_fingerprint=bundle.fingerprint, model="small", degrees={0: DegreeProfile(latency)}, interval="infer",
    )  # fmt: skip


def test_only_names_change_and_profiles_stay(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    write_small_bundle(path)
    before = Bundle(path)
    old = profile(before).save(path)
    files = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file() and file.name != "bundle.json"}
    after = relabel(path, NAMES)
    assert Bundle(path).labels == after.labels == NAMES
    assert all((path / name).read_bytes() == content for name, content in files.items())
    (kept,) = find_profiles(path)
    assert kept != old
    assert Profile.load(kept).bundle_fingerprint == after.fingerprint


def test_what_does_not_fit_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    write_small_bundle(path)
    before = (path / "bundle.json").read_bytes()
    with pytest.raises(RequestError, match=rf"has {CLASSES} classes. Got 1 labels"):
        relabel(path, ["one"])
    (path / "signatures").mkdir()
    (path / "signatures" / "x.json").write_text("{}")
    with pytest.raises(RequestError, match=r"is signed.*sign again"):
        relabel(path, NAMES)
    assert (path / "bundle.json").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfbolt\nnut\nwasher\n",
        b"bolt\r\nnut\r\n\r\nwasher",
        b'["bolt", "nut", "washer"]',
        b'{"2": "washer", "0": "bolt", "1": "nut"}',
        b'{"bolt": 0, "nut": 1, "washer": 2}',
        b'{"id2label": {"0": "bolt", "1": "nut", "2": "washer"}}',
        b'{"0": ["n1", "bolt"], "1": ["n2", "nut"], "2": ["n3", "washer"]}',
    ],
)
def test_labels_as_people_write_them(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels").write_bytes(content)
    assert read_labels(tmp_path / "labels") == ["bolt", "nut", "washer"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no class"),
        (b"a\nb\na\n", "names 'a' twice"),
        ("M\u00fctze\nMu\u0308tze".encode(), "names 'Mütze' twice"),
        (b'{"0": "a", "2": "b"}', "its indices are not 0 … 1"),
        (b'["a", 3]', "a class has no name"),
        (b"[1, 2", "names|Cannot read|no class"),
        (b"\xff\xfe", "Cannot read the labels"),
        (b'["a", "b"', "Cannot read|names"),
    ],
)
def test_labels_that_nobody_can_use(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "labels").write_bytes(content)
    if content in (b"[1, 2", b'["a", "b"'):  # one line of text, as far as anyone can tell
        assert len(read_labels(tmp_path / "labels")) == 1
        return
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path / "labels")


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_one_line(text: str) -> None:
    try:
        size = parse_size(text)
    except RequestError:
        return
    assert min(size if isinstance(size, tuple) else (size,)) >= 1

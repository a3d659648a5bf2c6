"""The bundle's reader: whatever a folder holds, it is a bundle or one readable error."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seals import sealed_bytes

import tocom.formats.schemas
from tocom.errors import BundleError
from tocom.formats.bundle import Bundle

FILES = {"weights.bin": bytes(range(256)) * 40, "degree-00.onnx": b"dense", "degree-04.onnx": b"compressed"}


def manifest_of(files: dict[str, bytes]) -> dict[str, Any]:
    degrees = [
        {
            "degree": degree,
            "onnx": f"degree-{degree:02d}.onnx",
            "token_counts": [26, 26 - degree],
            "macs": 1000 - degree,
            "check": {"max_abs_difference": 1e-6, "images": 4, "undecided": 0, "against": "torch"},
        }
        for degree in (4, 0)
    ]
    return {
        "schema_version": 1,
        "created_by": "tests",
        "model": {"name": "vit", "fingerprint": "0" * 64, "weights": "file", "prefix_tokens": 1},
        "method": "merge",
        "family": "every",
        "fuse": False,
        "source_degree": 0,
        "compensator": None,
        "precision": "fp32",
        "batch": {"min": 1, "opt": 2, "max": 4},
        "input": {
            "name": "images",
            "dtype": "float32",
            "shape": ["batch", 3, 80, 64],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "crop": 0.9,
            "crop_mode": "center",
        },
        "outputs": [{"name": "logits", "shape": ["batch", 10]}],
        "labels": None,
        "degrees": degrees,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            for name, content in files.items()
        },
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    write(path, manifest_of(FILES))
    return path


def write(folder: Path, manifest: Any) -> None:
    (folder / "bundle.json").write_bytes(sealed_bytes(json.dumps(manifest).removesuffix("}").encode()))


def use(bundle: Bundle) -> list[Any]:
    """Read everything that a bundle tells."""
    paths = [bundle.onnx_path(degree) for degree in bundle.degrees]
    return [
        repr(bundle), bundle.degrees, bundle.model_name, bundle.precision, bundle.batch, bundle.image_shape,
        bundle.output_names, bundle.labels, bundle.fingerprint, paths,
    ]  # fmt: skip


def test_what_a_bundle_tells(folder: Path) -> None:
    bundle = Bundle(folder)
    assert list(bundle.degrees) == [0, 4]
    assert bundle.degrees[4].token_counts == (26, 22)
    assert (bundle.batch, bundle.image_shape, bundle.output_names) == ((1, 2, 4), (3, 80, 64), ("logits",))
    assert bundle.onnx_path(4) == folder / "degree-04.onnx"
    assert bundle.fingerprint == hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()
    schema = json.loads(Path(tocom.formats.schemas.__path__[0], "bundle-v1.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(bundle.manifest)
    with pytest.raises(BundleError, match=r"has no degree 8\. It has: 0, 4"):
        bundle.onnx_path(8)
    with pytest.raises(BundleError, match=r"has no file 'other'\. It has: weights\.bin"):
        bundle.file("other")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def link_out(path: Path) -> None:
    outside = path.parent.parent / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


FILE_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, r"weights\.bin cannot be read \(No such file"),
    "truncated": (lambda path: os.truncate(path, 100), r"weights\.bin has 100 bytes, the manifest says 10240"),
    "empty": (lambda path: os.truncate(path, 0), "has 0 bytes"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "has 10241 bytes"),
    "flipped bit": (flip, r"weights\.bin has sha256 [0-9a-f]{64}, the manifest says [0-9a-f]{64}"),
    "link out": (link_out, r"weights\.bin is a link out of the bundle"),
    "link to itself": (link_to_itself, r"weights\.bin cannot be read"),
    "folder": (as_folder, r"weights\.bin cannot be read \(it is not a regular file\)"),
    "pipe": (as_pipe, r"weights\.bin cannot be read \(it is not a regular file\)"),
}


@pytest.mark.parametrize("kind", FILE_DAMAGE)
@pytest.mark.fault(
    "files of a bundle that are missing, truncated, empty, longer, flipped, links or pipes",
    outcome="BundleError that names the file and both sizes or hashes, before anything parses it",
)
def test_damaged_files_are_refused_by_name(folder: Path, kind: str) -> None:
    damage, message = FILE_DAMAGE[kind]
    damage(folder / "weights.bin")
    with pytest.raises(BundleError, match=message) as caught:
        Bundle(folder)
    assert "\n" not in str(caught.value)
    assert list(Bundle(folder, verify=False).degrees) == [0, 4]


def test_a_link_within_the_bundle_is_fine(folder: Path) -> None:
    (folder / "weights.bin").rename(folder / "shared.bin")
    (folder / "weights.bin").symlink_to("shared.bin")
    Bundle(folder)


def test_files_that_the_manifest_does_not_name_are_never_opened(folder: Path) -> None:
    os.mkfifo(folder / "extra.onnx")  # opening it would block
    (folder / "profiles").mkdir()
    bundle = Bundle(folder)
    with pytest.raises(BundleError, match=r"has no file 'extra\.onnx'"):
        bundle.file("extra.onnx")


@pytest.mark.parametrize(
    "name", ["../outside", "a/../../outside", "/etc/passwd", "..", "", ".", "./bundle.json", "bundle.json", "a\0b"]
)
@pytest.mark.fault("names in the manifest that point out of the bundle", outcome="BundleError; nothing is opened")
def test_names_that_point_out_of_the_bundle(folder: Path, name: str) -> None:
    manifest = manifest_of(FILES)
    manifest["files"][name] = {"sha256": "0" * 64, "size": 1}
    write(folder, manifest)
    with pytest.raises(BundleError, match="points out of the bundle"):
        Bundle(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "bundle.json cannot be read"),
        *((content, "lacks its seal, the last member 'sha256'") for content in (b"", b"{", b"[]", b'{"a": 1}')),
        (sealed_bytes(b""), "is not valid JSON"),
        (sealed_bytes(b'{"a": "\xff\xfe"'), "is not valid JSON"),
        (sealed_bytes(b'{"a": ' + b"[" * 100_000), "is not valid JSON"),
        (sealed_bytes(b'{"schema_version": ' + b"9" * 9000), "is not valid JSON"),
        (sealed_bytes(b'{"a": 1'), "has schema version None, this tocom reads 1"),
        (sealed_bytes(b'{"schema_version": 2'), "has schema version 2, this tocom reads 1"),
        (sealed_bytes(b'{"schema_version": true'), "has schema version True"),
        (sealed_bytes(b'{"schema_version": 1, "schema_version": 1'), "a member is named twice"),
        (sealed_bytes(b'{"schema_version": NaN'), "NaN is not a JSON number"),
        (sealed_bytes(b'{"a": ' * 33 + b"1" + b"}" * 32), "nests more than 32 levels deep"),
        (sealed_bytes(b'{"schema_version": "1"'), "has schema version '1'"),
        (sealed_bytes(b'{"schema_version": 1'), "'created_by' is missing"),
    ],
)
@pytest.mark.fault(
    "a manifest that is missing, empty, cut, no JSON, too deep or of another version", outcome="BundleError in one line"
)
def test_manifests_that_are_none(folder: Path, content: bytes | None, message: str) -> None:
    (folder / "bundle.json").unlink()
    if content is not None:
        (folder / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_no_folder_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(BundleError, match="No bundle at"):
            Bundle(path)


@pytest.mark.fault("a manifest of many megabytes", outcome="BundleError before it is read")
def test_a_manifest_too_large_is_not_read(folder: Path) -> None:
    with (folder / "bundle.json").open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(BundleError, match="has more than 16777216 bytes"):
        Bundle(folder)


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in items for place in places_of(each, (*path, key)))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.fault(
    "random changes of a manifest's fields", outcome="BundleError, or a bundle that says what the manifest says"
)
def test_any_change_of_a_manifest_is_an_error_or_still_a_bundle(folder: Path, data: st.DataObject) -> None:
    manifest = copy.deepcopy(manifest_of(FILES))
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from([place for place in places_of(manifest) if place]))
        holder = manifest
        for key in path:
            holder = holder[key]
        if data.draw(st.booleans()):
            holder[last] = data.draw(JSON)
        else:
            del holder[last]
    write(folder, manifest)
    try:
        bundle = Bundle(folder)
    except BundleError:
        return
    told = use(bundle)
    assert [entry.degree for entry in bundle.degrees.values()] == sorted(
        entry["degree"] for entry in manifest["degrees"]
    )
    assert told[3] == manifest["precision"]
    assert all(path.parent == folder for path in told[-1])
    channels, height, width = bundle.image_shape
    assert min(channels, height, width, *bundle.batch) > 0

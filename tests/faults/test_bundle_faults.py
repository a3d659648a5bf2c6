"""Damaged bundles, through the runtime: refused before an engine is made, by one line that names the file or field."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from small_bundles import SmallBundle, images_of

from tocom.errors import BundleError
from tocom.formats.sealed_json import write_sealed_json
from tocom.runtime import Runtime
from tocom.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Fail when an engine is made of a bundle that must be refused."""
    if "serves" not in request.node.name:
        monkeypatch.setattr(OnnxRuntimeBackend, "load", lambda *arguments: pytest.fail("an engine was made"))


def refused(bundle: SmallBundle, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        Runtime.open(bundle.path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("one", "other"), [("degree-00.onnx", "degree-04.onnx"), ("weights.bin", "degree-08.onnx")])
@pytest.mark.fault("files of a bundle swapped", outcome="BundleError that names a file, before anything parses it")
def test_swapped_files(bundle: SmallBundle, one: str, other: str) -> None:
    first, second = bundle.path / one, bundle.path / other
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    refused(bundle, rf"({one}|{other}) has (\d+ bytes|sha256 [0-9a-f]+), the manifest says".replace(".", r"\."))


@pytest.mark.fault("extra files in a bundle", outcome="they are never opened; the bundle serves")
def test_a_bundle_with_extra_files_serves(bundle: SmallBundle) -> None:
    (bundle.path / "degree-12.onnx").write_bytes(b"not of this bundle")
    (bundle.path / ".hidden").write_bytes(bytes(100))
    (bundle.path / "weights.bin.old").write_bytes(bytes(100))
    images = images_of(1)
    with Runtime.open(bundle.path) as runtime:
        assert runtime.degrees == (0, 4, 8)
        logits = runtime.infer(images, degree=8).outputs["logits"]
    np.testing.assert_allclose(logits, bundle.reference(images, 8), atol=1e-4)


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


WRONG_TYPE = {
    "degrees is a text": put("degrees", value="0,4,8"),
    "a degree is a text": put("degrees", 0, "degree", value="0"),
    "a degree is true": put("degrees", 0, "degree", value=True),
    "files is a list": put("files", value=[]),
    "a size is a text": put("files", "weights.bin", "size", value="100"),
    "a hash is a number": put("files", "weights.bin", "sha256", value=7),
    "batch is a number": put("batch", value=1),
    "token counts are texts": put("degrees", 1, "token_counts", value=["17"]),
    "a mean is null": put("input", "mean", value=[0.5, None, 0.5]),
    "model is null": put("model", value=None),
}
OUT_OF_RANGE = {
    "a negative degree": put("degrees", 0, "degree", value=-1),
    "a degree twice": put("degrees", 0, "degree", value=4),
    "a batch of zero": put("batch", "min", value=0),
    "a batch that descends": put("batch", "max", value=0),
    "a standard deviation of zero": put("input", "std", value=[0.5, 0, 0.5]),
    "a crop above one": put("input", "crop", value=1.5),
    "a token count of zero": put("degrees", 0, "token_counts", value=[17, 0]),
    "a shape of three": put("input", "shape", value=[3, 8, 8]),
    "a schema version to come": put("schema_version", value=99),
    "a crop mode that is none": put("input", "crop_mode", value="magic"),
    "an interpolation that is none": put("input", "interpolation", value="magic"),
}
WRONG_SIZE = {
    "a size too small": put("files", "weights.bin", "size", value=1),
    "a size that no file has": put("files", "weights.bin", "size", value=1 << 62),
    "a negative size": put("files", "weights.bin", "size", value=-1),
    "no degrees": put("degrees", value=[]),
    "no outputs": put("outputs", value=[]),
    "no token counts": put("degrees", 0, "token_counts", value=[]),
}


def with_manifest(bundle: SmallBundle, change: Callable[[dict[str, Any]], None]) -> SmallBundle:
    path = bundle.path / "bundle.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    write_sealed_json(path, manifest)  # else the seal alone would tell
    return bundle


@pytest.mark.parametrize("kind", WRONG_TYPE)
@pytest.mark.fault("manifest fields of the wrong type", outcome="BundleError that names the field")
def test_wrong_type(bundle: SmallBundle, kind: str) -> None:
    refused(with_manifest(bundle, WRONG_TYPE[kind]), r"bundle\.json")


@pytest.mark.parametrize("kind", OUT_OF_RANGE)
@pytest.mark.fault("manifest fields out of range", outcome="BundleError that names the field")
def test_out_of_range(bundle: SmallBundle, kind: str) -> None:
    refused(with_manifest(bundle, OUT_OF_RANGE[kind]), r"bundle\.json")


@pytest.mark.parametrize("kind", WRONG_SIZE)
@pytest.mark.fault("manifest sizes that are wrong or huge", outcome="BundleError, before anything is allocated")
def test_wrong_size(bundle: SmallBundle, kind: str) -> None:
    refused(with_manifest(bundle, WRONG_SIZE[kind]), r"bundle\.json|weights\.bin")

"""The golden bundle loads, and answers what it answered when it was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tocom.formats.bundle import SCHEMA_VERSION, Bundle
from tocom.runtime import Runtime

GOLDEN = Path(__file__).parent / "golden"


def test_there_is_one_of_the_present_version() -> None:
    assert [path.name for path in GOLDEN.iterdir() if path.is_dir()] == [f"version-{SCHEMA_VERSION}"]


@pytest.mark.fault("a bundle that an earlier build of tocom wrote", outcome="it answers as it did")
def test_the_golden_bundle_answers_as_it_did(tmp_path: Path) -> None:
    path = shutil.copytree(GOLDEN / f"version-{SCHEMA_VERSION}", tmp_path / "bundle")
    expected = json.loads((GOLDEN / f"version-{SCHEMA_VERSION}.json").read_text())
    bundle = Bundle(path)
    assert bundle.manifest["schema_version"] == SCHEMA_VERSION
    assert (bundle.labels, bundle.batch, bundle.image_shape) == (["a", "b", "c"], (1, 1, 2), (3, 48, 48))
    images = np.random.default_rng(0).standard_normal((2, 3, 48, 48)).astype(np.float32)
    with Runtime.open(path, threads=1) as runtime:
        assert [str(degree) for degree in runtime.degrees] == list(expected)
        for degree in runtime.degrees:
            logits = runtime.infer(images, degree=degree).outputs["logits"]
            np.testing.assert_allclose(logits, expected[str(degree)], rtol=1e-4, atol=1e-4)

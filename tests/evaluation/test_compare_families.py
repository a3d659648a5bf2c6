"""Families of schedules compared on unlabelled images, against plain NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_vits import small_images, small_vit
from typer.testing import CliRunner

from tocom import compress
from tocom.cli import add_verbs
from tocom.cli.app import app
from tocom.errors import DataError, DegreeError, RequestError
from tocom.evaluation.families import FamilyRow, compare_families, spacings, suggest_family

add_verbs(app, "evaluate")
FAMILIES = ["spaced:1", "spaced:0,2"]


def row(family: str, low: float, blocks: int, latency_ms: float | None = None) -> FamilyRow:
    return FamilyRow(family, 4, 4, 1000, blocks, 0.01, (low + 0.1, low, low + 0.2), latency_ms)


def test_rows_are_what_numpy_finds() -> None:
    model = small_vit(num_classes=0)
    images = small_images(model, 6)
    rows = compare_families(model, list(images), degrees=[3], families=FAMILIES, latencies={"spaced:1": {3: 7.0}})
    assert [each.family for each in rows] == ["every", *FAMILIES]
    assert [each.latency_ms for each in rows] == [None, 7.0, None]
    with torch.inference_mode():
        dense = model(images).double().numpy()
        of = [compress(model, each.degree, family=each.family)(images).double().numpy() for each in rows]
    gaps = [1 - (dense * found).sum(1) / np.linalg.norm(dense, axis=1) / np.linalg.norm(found, axis=1) for found in of]
    for each, gap in zip(rows, gaps, strict=True):
        assert each.gap == pytest.approx(gap.mean(), abs=1e-6)
        mean, low, high = each.difference
        change = gap - gaps[0]
        assert mean == pytest.approx(change.mean(), abs=1e-6)
        assert high - low == pytest.approx(2 * 1.96 * change.std(ddof=1) / 6**0.5, abs=1e-6)
        assert abs(each.macs / rows[0].macs - 1) < 0.1
    assert [each.removing_blocks for each in rows] == [3, 1, 2]


def test_the_suggestion_is_the_fastest_that_is_not_worse() -> None:
    every = FamilyRow("every", 4, 4, 1000, 12, 0.01, (0.0, 0.0, 0.0), 5.0)
    assert suggest_family([every, row("spaced:1", 0.01, 1), row("spaced:0,2", -0.01, 2)]) == "spaced:0,2"
    assert suggest_family([every, row("spaced:1", 0.01, 1)]) == "every"
    # Latencies decide only where all have one.
    assert suggest_family([every, row("spaced:1", -0.01, 1, 6.0), row("spaced:0,2", -0.01, 2, 5.5)]) == "every"
    assert suggest_family([every, row("spaced:1", -0.01, 1, 6.0), row("spaced:0,2", -0.01, 2)]) == "spaced:1"


def test_spacings_and_bad_requests() -> None:
    assert spacings(12)[:3] == ["every", "spaced:0,2,4,6,8,10", "spaced:1,4,7,10"]
    assert spacings(1) == ["every"]
    model = small_vit()
    images = list(small_images(model))
    with pytest.raises(DataError, match=r"at least 2 images\. Got 1"):
        compare_families(model, images[:1], degrees=[3])
    with pytest.raises(DegreeError, match="degrees above 0"):
        compare_families(model, images, degrees=[0, 3])
    with pytest.raises(DegreeError, match=r"which has 3: 0 to 2\. Got 3"):
        compare_families(model, images, degrees=[3], families=["spaced:3"])


def test_the_command(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(generator.integers(0, 255, (80, 80, 3), np.uint8)).save(tmp_path / f"{index}.png")
    arguments = [
        "evaluate", "--schedules", "--model", "deit_tiny_patch16_224", "--weights", "random", "--image-size", "80",
        "--images", str(tmp_path), "--degrees", "2", "--device", "cpu", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    ran = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert ran.exit_code == 0
    assert "suggested: " in ran.stdout
    content = json.loads((tmp_path / "out" / "families.json").read_text())
    assert (content["images"], content["rows"][0]["family"]) == (3, "every")
    assert content["suggested"] in {each["family"] for each in content["rows"]}
    with pytest.raises(RequestError, match="compares families without a compensator"):
        CliRunner().invoke(app, [*arguments, "--compensator", "c.safetensors"], catch_exceptions=False)

"""``tocom run`` and ``tocom calibrate`` on a real bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from small_bundles import SIZE, SmallBundle, write_small_bundle
from typer.testing import CliRunner

from tocom.cli import calibrate, run
from tocom.errors import DataError, RequestError

runner = CliRunner()


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    run.register(app)
    calibrate.register(app)
    return app


@pytest.fixture
def labelled(tmp_path: Path) -> SmallBundle:
    return write_small_bundle(tmp_path / "bundle", labels=["a", "b", "c", "d", "e"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("a", "c"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(3):
            pixels = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    return tmp_path / "images"


def test_run_prints_an_answer_per_image_and_a_summary(app: typer.Typer, labelled: SmallBundle, folder: Path) -> None:
    done = runner.invoke(app, ["run", str(labelled.path), "--images", str(folder), "--budget-ms", "1000"])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if line.startswith(str(folder))]
    assert len(lines) == 6
    assert all("degree 0" in line and " ms" in line for line in lines)
    assert "100.0%" in done.stdout


def test_run_json_holds_every_figure(app: typer.Typer, labelled: SmallBundle, folder: Path) -> None:
    done = runner.invoke(app, ["run", str(labelled.path), "--images", str(folder), "--fps", "200", "--json"])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert len(content["answers"]) == 6
    answer = content["answers"][0]
    assert answer["label"] == "abcde"[answer["class"]]
    assert 0 < answer["probability"] <= 1
    assert content["summary"]["budget_ms"] == 5.0
    assert sum(content["summary"]["degrees"].values()) == 6


def test_calibrate_then_run(app: typer.Typer, labelled: SmallBundle, folder: Path) -> None:
    done = runner.invoke(app, ["calibrate", str(labelled.path), "--images", str(folder), "--samples", "5", "--json"])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert [entry["degree"] for entry in content["degrees"]] == [0, 4, 8]
    assert content["degrees"][0]["accuracy"]["count"] == 6
    assert (labelled.path / "profiles" / f"{content['fingerprint']}.json").is_file()
    table = runner.invoke(app, ["calibrate", str(labelled.path), "--samples", "3"])
    assert "p95 ms" in table.stderr
    assert "not measured" in table.stderr


@pytest.mark.parametrize("budget", ["0", "-3", "nan"])
def test_bad_budgets_end_before_the_bundle_is_opened(app: typer.Typer, folder: Path, budget: str) -> None:
    done = runner.invoke(app, ["run", "nowhere", "--images", str(folder), "--budget-ms", budget])
    assert isinstance(done.exception, RequestError)
    assert "'budget_ms'" in str(done.exception)


@pytest.mark.parametrize("fps", ["0", "-1", "nan", "inf"])
def test_bad_rates(app: typer.Typer, folder: Path, fps: str) -> None:
    done = runner.invoke(app, ["run", "nowhere", "--images", str(folder), "--fps", fps])
    assert isinstance(done.exception, RequestError)
    assert "'--fps'" in str(done.exception)


def test_an_unreadable_image_is_named(app: typer.Typer, labelled: SmallBundle, folder: Path) -> None:
    (folder / "a" / "0.png").write_bytes(b"")
    done = runner.invoke(app, ["run", str(labelled.path), "--images", str(folder)])
    assert isinstance(done.exception, DataError)
    assert "0.png" in str(done.exception)

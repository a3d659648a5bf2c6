"""``tocom run`` and ``tocom calibrate`` on a real bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from small_bundles import SIZE, SmallBundle, write_small_bundle
from typer.testing import CliRunner

from tocom.cli import calibrate, run
from tocom.errors import DataError, EngineError, RequestError

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
    assert len(content["answers"]) + content["summary"]["dropped"] == 6
    answer = content["answers"][0]
    assert answer["label"] == "abcde"[answer["class"]]
    assert 0 < answer["probability"] <= 1
    assert content["summary"]["budget_ms"] == 5.0
    assert sum(content["summary"]["degrees"].values()) == len(content["answers"])


def test_calibrate_then_run(app: typer.Typer, labelled: SmallBundle, folder: Path) -> None:
    done = runner.invoke(app, ["calibrate", str(labelled.path), "--images", str(folder), "--samples", "5", "--json"])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert [entry["degree"] for entry in content["degrees"]] == [0, 4, 8]
    assert content["degrees"][0]["accuracy"]["count"] == 6
    assert (labelled.path / "profiles" / f"{content['fingerprint']}.json").is_file()
    table = runner.invoke(app, ["calibrate", str(labelled.path), "--samples", "3"])
    assert "p95 ms" in table.stdout
    assert "same as" not in table.stdout


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


def test_the_live_view_shows_the_last_request(app: typer.Typer, labelled: SmallBundle, folder: Path) -> None:
    done = runner.invoke(app, ["run", str(labelled.path), "--images", str(folder), "--budget-ms", "1000", "--live"])
    assert done.exit_code == 0, done.output
    assert "recent latency" in done.stderr
    assert "0 of 6" in done.stderr


@pytest.mark.parametrize("sources", [[], ["--images", "x", "--video", "0"]])
def test_exactly_one_source(app: typer.Typer, sources: list[str]) -> None:
    done = runner.invoke(app, ["run", "nowhere", *sources])
    assert isinstance(done.exception, RequestError)
    assert "either --images or --video" in str(done.exception)


def test_a_video(app: typer.Typer, labelled: SmallBundle, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = str(tmp_path / "v.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 30, (32, 32))
    for value in range(5):
        writer.write(np.full((32, 32, 3), value * 40, np.uint8))
    writer.release()
    done = runner.invoke(app, ["run", str(labelled.path), "--video", path, "--json"])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert len(content["answers"]) + content["summary"]["dropped"] == 5
    assert content["answers"][-1]["image"] == "frame 4"
    missing = runner.invoke(app, ["run", str(labelled.path), "--video", str(tmp_path / "none.avi")])
    assert isinstance(missing.exception, DataError)


def test_a_video_without_opencv_says_what_to_install(
    app: typer.Typer, labelled: SmallBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    done = runner.invoke(app, ["run", str(labelled.path), "--video", "0"])
    assert isinstance(done.exception, RequestError)
    assert "pip install opencv-python" in str(done.exception)


def test_a_memory_limit(app: typer.Typer, labelled: SmallBundle, folder: Path) -> None:
    done = runner.invoke(app, ["run", str(labelled.path), "--images", str(folder), "--memory-limit-mib", "1"])
    assert isinstance(done.exception, EngineError)
    assert "No degree fits" in str(done.exception)

"""``tocom run`` and ``tocom calibrate`` on a real bundle."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from rich.console import Console
from small_bundles import SIZE, SmallBundle, write_small_bundle
from typer.testing import CliRunner

from tocom.cli import add_verbs
from tocom.cli.live import LiveView
from tocom.errors import DataError, EngineError, OutputError, RequestError
from tocom.runtime import Result

runner = CliRunner()


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    add_verbs(app, "run", "calibrate")
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


@pytest.mark.parametrize("width", [50, 80])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_the_live_view_fits_the_terminal(width: int, encoding: str) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding)
    console = Console(file=screen, force_terminal=True, width=width, markup=False)
    outputs = {"logits": np.zeros((1, 5), np.float32)}
    view = LiveView(["left [red]", "right"], 10.0, console=console, enabled=True)
    with view.shown:
        for count in range(200):
            # The last one is the slowest: its bar, the highest, stands rightmost.
            view.add("right", Result(outputs, 4, 1.0 + 19 * (count == 199), 0.0, count < 199, 1.0, 10.0, True), 3)
    shown = ["".join(part.text for part in line).rstrip() for line in console.render_lines(view, pad=False)]
    assert shown[0] == "left [red]: waiting"
    assert all(len(line) <= width for line in shown)
    assert "1 of 200 missed" in " ".join(shown)
    assert shown[-1][-1] == ("█" if encoding == "utf-8" else "#")
    assert len(shown[-1]) == min(width, 120)


def test_without_a_terminal_there_is_no_live_view(app: typer.Typer, labelled: SmallBundle, folder: Path) -> None:
    done = runner.invoke(app, ["run", str(labelled.path), "--images", str(folder), "--budget-ms", "1000", "--live"])
    assert done.exit_code == 0, done.output
    assert "missed" not in done.output
    assert done.stdout.count(str(folder)) == 6


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_answers_are_written_as_they_come(
    app: typer.Typer, labelled: SmallBundle, folder: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / "new" / f"answers.{suffix}"
    options = ["--topk", "2", "--degree", "4", "--out", str(out)]
    done = runner.invoke(app, ["run", str(labelled.path), "--images", str(folder), *options])
    assert done.exit_code == 0, done.output
    if suffix == "csv":
        with out.open(newline="") as file:
            rows = [
                {**row, "top": json.loads(row["top"]), "degree": int(row["degree"])} for row in csv.DictReader(file)
            ]
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png"] * 2
    assert {row["degree"] for row in rows} == {4}
    for row in rows:
        assert len(row["top"]) == 2
        assert row["top"][0]["label"] == row["label"]
        assert row["top"][0]["probability"] >= row["top"][1]["probability"]
    wrong = runner.invoke(app, ["run", str(labelled.path), "--images", str(folder), "--out", "x.txt"])
    assert isinstance(wrong.exception, RequestError)


@pytest.mark.parametrize("skip", [[], ["--skip-unreadable"]])
def test_one_unreadable_image_leaves_the_answers_to_the_others(
    app: typer.Typer, labelled: SmallBundle, folder: Path, skip: list[str]
) -> None:
    (folder / "a" / "1.png").write_bytes((folder / "a" / "0.png").read_bytes()[:60])
    done = runner.invoke(app, ["run", str(labelled.path), "--images", str(folder), "--json", *skip])
    content = json.loads(done.stdout)
    assert ["error" in answer for answer in content["answers"]] == [False, True, False, False, False, False]
    assert "1.png" in content["answers"][1]["error"]
    assert (content["summary"]["images"], content["summary"]["failed"]) == (5, 1)
    if skip:
        assert done.exit_code == 0
    else:
        assert isinstance(done.exception, DataError)
        assert "1 of 6 images could not be read" in str(done.exception)


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
    assert [answer["image"] for answer in content["answers"]] == [f"frame {index}" for index in range(5)]
    assert content["summary"]["dropped"] == 0
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


def test_several_videos(app: typer.Typer, labelled: SmallBundle, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    for name in ("left", "right"):
        writer = cv2.VideoWriter(str(tmp_path / f"{name}.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 30, (32, 32))
        for value in range(4):
            writer.write(np.full((32, 32, 3), value * 40, np.uint8))
        writer.release()
    videos = [word for name in ("left", "right") for word in ("--video", str(tmp_path / f"{name}.avi"))]
    for options, rate in (([], None), (["--fps", "50"], 50)):
        done = runner.invoke(app, ["run", str(labelled.path), *videos, "--json", *options])
        assert done.exit_code == 0, done.output
        content = json.loads(done.stdout)
        shown = [answer["image"] for answer in content["answers"]]
        assert len(shown) + content["summary"]["dropped"] == 8
        for name in ("left", "right"):
            assert f"{tmp_path}/{name}.avi frame 3" in shown
        if rate is None:
            assert content["summary"]["dropped"] == 0
    twice = runner.invoke(app, ["run", str(labelled.path), *videos[:2], *videos[:2]])
    assert isinstance(twice.exception, RequestError)


def test_no_limit_is_no_number_in_json(app: typer.Typer, labelled: SmallBundle, folder: Path) -> None:
    found = runner.invoke(
        app,
        ["run", str(labelled.path), "--images", str(folder), "--budget-ms", "inf", "--json"],
        catch_exceptions=False,
    )
    assert json.loads(found.stdout)["summary"]["budget_ms"] is None


@pytest.mark.parametrize("address", ["²", "9" * 30])
def test_digits_that_are_no_cameras_number(app: typer.Typer, labelled: SmallBundle, address: str) -> None:
    pytest.importorskip("cv2")
    found = runner.invoke(app, ["run", str(labelled.path), "--video", address])
    assert isinstance(found.exception, DataError)
    assert "Cannot open the video" in str(found.exception)


def test_where_no_image_is_readable_nobody_is_told_that_others_are_answered(
    app: typer.Typer, labelled: SmallBundle, tmp_path: Path
) -> None:
    (tmp_path / "0.png").write_bytes(b"no picture")
    found = runner.invoke(app, ["run", str(labelled.path), "--images", str(tmp_path / "0.png"), "--skip-unreadable"])
    assert isinstance(found.exception, DataError)
    assert "1 of 1 images could not be read" in str(found.exception)
    assert "Others" not in str(found.exception)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.fault(
    "no room on the disk for the answers of `tocom run --out`", outcome="OutputError that names the file"
)
def test_answers_that_find_no_room(app: typer.Typer, labelled: SmallBundle, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full.csv").symlink_to("/dev/full")
    arguments = ["run", str(labelled.path), "--images", str(folder), "--out", str(tmp_path / "full.csv")]
    found = runner.invoke(app, arguments)
    assert isinstance(found.exception, OutputError)
    assert "full.csv: No space left" in str(found.exception)

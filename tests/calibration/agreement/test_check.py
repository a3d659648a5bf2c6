"""``check``: every degree against the reference answers, on every backend that is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from small_bundles import SmallBundle, write_small_bundle
from typer.testing import CliRunner
from wrong_engines import make_wrong

from tocom.calibration.agreement.check import check
from tocom.calibration.agreement.polygraphy import write_polygraphy
from tocom.cli import add_verbs
from tocom.errors import BundleError, EngineError, RequestError
from tocom.formats.bundle import Bundle
from tocom.formats.references import read_references

BOTH = ("onnxruntime", "openvino")


@pytest.fixture
def bundle(tmp_path: Path) -> SmallBundle:
    return write_small_bundle(tmp_path / "bundle")


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    add_verbs(app, "check")
    # A second command keeps typer from folding the only one into the program itself.
    app.command("other")(lambda: None)
    return app


def test_every_installed_backend_is_right_and_the_others_say_why(bundle: SmallBundle) -> None:
    found = check(bundle.path, threads=1)
    assert [each.name for each in found] == [
        "tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime", "openvino"
    ]  # fmt: skip
    for each in found:
        if each.name not in BOTH:
            assert each.missing
            assert not each.degrees
            continue
        assert each.version
        assert [row.degree for row in each.degrees] == [0, 4, 8]
        for row in each.degrees:
            assert row.is_right
            assert row.agreement is not None
            assert row.agreement.difference < 1e-4 < row.agreement.allowed
            assert (row.agreement.cosine, row.agreement.same_top, row.agreement.images) == (pytest.approx(1), 1.0, 4)


def test_one_wrong_degree_is_told_and_the_command_fails(app: typer.Typer, bundle: SmallBundle, tmp_path: Path) -> None:
    make_wrong(bundle.path, "classes permuted", degrees=(4,))
    arguments = ["check", str(bundle.path), *(part for name in BOTH for part in ("--backend", name)), "--threads", "1"]
    done = CliRunner().invoke(app, [*arguments, "--json", "--picture", str(tmp_path / "picture.png")])
    content = json.loads(done.stdout)
    assert content["right"] is False
    for backend in content["backends"]:
        rows = {row["degree"]: row for row in backend["degrees"]}
        assert [degree for degree, row in rows.items() if not row["right"]] == [4]
        assert rows[4]["same_top"] < 1
        assert rows[4]["difference"] > rows[4]["allowed"]
    assert isinstance(done.exception, EngineError)
    assert "answers wrongly at degree 4" in str(done.exception)
    with Image.open(tmp_path / "picture.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, EngineError)
    assert (done.stdout.count(" right "), done.stdout.count(" wrong ")) == (4, 2)


def test_other_images_are_judged_by_onnxruntime(app: typer.Typer, bundle: SmallBundle, tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    for place in range(3):
        Image.fromarray(generator.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / f"{place}.png")
    arguments = ["--backend", "openvino", "--images", str(tmp_path), "--degrees", "0,8", "--json"]
    done = CliRunner().invoke(app, ["check", str(bundle.path), *arguments])
    assert done.exit_code == 0, done.output
    (backend,) = json.loads(done.stdout)["backends"]
    assert [(row["degree"], row["images"], row["right"]) for row in backend["degrees"]] == [(0, 3, True), (8, 3, True)]
    make_wrong(bundle.path, "zeros")
    with pytest.raises(EngineError, match="onnxruntime cannot stand in for the model on other images"):
        check(bundle.path, ["openvino"], images=np.zeros((1, 3, 8, 8), np.float32), threads=1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"backends": ["cuda"]}, RequestError, r"must name some of tensorrt, .*Got \['cuda'\]"),
        ({"backends": ["tensorrt"]}, RequestError, "No backend can run .* has no tensorrt engines"),
        ({"degrees": [3]}, BundleError, "has no degree 3"),
    ],
)
def test_bad_requests_are_told(
    bundle: SmallBundle, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check(bundle.path, **change)


def test_polygraphy_reads_what_is_written(bundle: SmallBundle, tmp_path: Path) -> None:
    comparator, serde = pytest.importorskip("polygraphy.comparator"), pytest.importorskip("polygraphy.json")
    files = write_polygraphy(bundle.path, tmp_path / "polygraphy")
    assert [file.name for file in files[:2]] == ["inputs-00.json", "outputs-00.json"]
    references = read_references(Bundle(bundle.path))
    inputs = serde.load_json(str(tmp_path / "polygraphy" / "inputs-04.json"))
    results = comparator.RunResults.load(str(tmp_path / "polygraphy" / "outputs-04.json"))
    ((name, iterations),) = results.items()
    assert (name, len(iterations), len(inputs)) == ("tocom-references", 4, 4)
    for place, (feed, iteration) in enumerate(zip(inputs, iterations, strict=True)):
        np.testing.assert_array_equal(feed["images"], references.images[[place]])
        np.testing.assert_array_equal(iteration["logits"], references.answers[4][[place]])


def test_polygraphy_compares_an_onnx_file_with_the_references(bundle: SmallBundle, tmp_path: Path) -> None:
    pytest.importorskip("polygraphy")
    write_polygraphy(bundle.path, tmp_path)
    make_wrong(bundle.path, "cosine 0.9", degrees=(8,))

    def run(degree: int) -> subprocess.CompletedProcess[str]:
        model = bundle.path / f"degree-{degree:02d}.onnx"
        files = [part for kind in ("inputs", "outputs") for part in (f"--load-{kind}", f"{kind}-{degree:02d}.json")]
        program = "import sys; from polygraphy.tools import main; sys.exit(main())"
        arguments = ["run", str(model), "--onnxrt", *files, "--atol", "1e-3"]
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    good, wrong = run(4), run(8)
    assert good.returncode == 0, good.stdout + good.stderr
    assert wrong.returncode != 0
    assert "FAILED" in wrong.stdout

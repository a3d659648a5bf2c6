"""``tocom calibrate``: the table, the suggestion, the report, reuse, and JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from small_bundles import write_small_bundle
from typer.testing import CliRunner

from tocom.cli import add_verbs
from tocom.errors import CalibrationError, RequestError


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    add_verbs(app, "calibrate")
    # A second command keeps typer from folding the only one into the program itself.
    app.command("other")(lambda: None)
    return app


def test_measure_suggest_report_then_reuse(app: typer.Typer, tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    base = ["calibrate", str(bundle.path)]
    none = CliRunner().invoke(app, [*base, "--reuse"])
    assert isinstance(none.exception, CalibrationError)
    assert "Measure one: tocom calibrate" in str(none.exception)
    done = CliRunner().invoke(app, [*base, "--samples", "8", "--suggest", "--report"])
    assert done.exit_code == 0, done.output
    assert re.search(r"--degrees 0,(4,)?8", done.stdout)  # eight samples may find degree 4 no faster than the dense one
    assert "chosen by latency alone" in done.stdout
    assert (bundle.path / "report" / "report.html").is_file()
    before = sorted((bundle.path / "profiles").iterdir())
    again = CliRunner().invoke(app, [*base, "--reuse", "--suggest", "--most", "2", "--json"])
    assert again.exit_code == 0, again.output
    content = json.loads(again.stdout)
    assert content["suggestion"]["degrees"] == [0, 8]
    assert content["suggestion"]["accuracy"] == "degree"
    assert content["profile"]["degrees"][0]["latency"]["count"] >= 8
    assert sorted((bundle.path / "profiles").iterdir()) == before


def test_bad_options(app: typer.Typer, tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    for options in (["--tolerance", "0"], ["--samples", "0"]):
        bad = CliRunner().invoke(app, ["calibrate", str(bundle.path), *options])
        assert isinstance(bad.exception, RequestError)

"""``bench`` and ``tocom bench`` on a real bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from small_bundles import SmallBundle, write_small_bundle
from typer.testing import CliRunner

from tocom.calibration import bench
from tocom.cli import add_verbs
from tocom.errors import DegreeError, RequestError
from tocom.formats.profile import DegreeProfile, Latency
from tocom.runtime import Runtime
from tocom.runtime.profiles import identity_of


@pytest.fixture
def bundle(tmp_path: Path) -> SmallBundle:
    return write_small_bundle(tmp_path / "bundle", width=256)


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    add_verbs(app, "bench")
    # A second command keeps typer from folding the only one into the program itself.
    app.command("other")(lambda: None)
    return app


def test_parts_add_up_and_queueing_shows_with_concurrency(bundle: SmallBundle) -> None:
    with Runtime.open(bundle.path) as runtime:
        alone = bench(runtime, degree=0, duration_s=0.2, warmup_s=0.0)
        crowd = bench(runtime, degree=0, duration_s=0.2, warmup_s=0.0, concurrency=4, batch=2)
    assert alone["degrees"] == {"0": alone["requests"]}
    assert alone["misses"] == 0
    for part in ("total_ms", "queue_ms", "compute_ms"):
        figures = alone[part]
        assert 0 < figures["median"] <= figures["p90"] <= figures["p95"] <= figures["p99"]
    assert alone["total_ms"]["mean"] == pytest.approx(alone["queue_ms"]["mean"] + alone["compute_ms"]["mean"], abs=1e-3)
    assert crowd["queue_ms"]["mean"] > alone["queue_ms"]["mean"]
    assert crowd["images_per_second"] == pytest.approx(crowd["requests"] * 2 / 0.2, abs=0.01)


def test_with_a_budget_the_policy_chooses(bundle: SmallBundle) -> None:
    with Runtime.open(bundle.path) as runtime:
        device = identity_of(runtime.bundle, runtime.backend)["device"]
        # Models this small take the same time at every degree: what the policy goes by is given, not measured.
        degrees = {degree: DegreeProfile(Latency(5, *[ms] * 4)) for degree, ms in ((0, 3.0), (4, 2.0), (8, 1.0))}
        profile = replace(runtime.profile, degrees=degrees, device=device)
    with Runtime.open(bundle.path, profile=profile) as runtime:
        loose = bench(runtime, budget_ms=1000.0, duration_s=0.1)
        tight = bench(runtime, budget_ms=1e-6, duration_s=0.1)
    assert set(loose["degrees"]) == {"0"}
    assert set(tight["degrees"]) == {"8"}
    assert (loose["misses"], tight["misses"]) == (0, tight["requests"])


@pytest.mark.parametrize(
    "argument",
    [{"duration_s": 0}, {"duration_s": float("nan")}, {"warmup_s": -1}, {"concurrency": 0}, {"concurrency": 1.5}],
)
def test_bad_arguments(bundle: SmallBundle, argument: dict[str, Any]) -> None:
    with Runtime.open(bundle.path) as runtime:
        with pytest.raises(RequestError, match=f"'{next(iter(argument))}' parameter"):
            bench(runtime, **argument)
        with pytest.raises(RequestError, match="batch of 1…4"):
            bench(runtime, batch=9)
        with pytest.raises(DegreeError):
            bench(runtime, degree=3)


def test_the_command(app: typer.Typer, bundle: SmallBundle) -> None:
    base = ["bench", str(bundle.path), "--duration", "0.05", "--warmup", "0"]
    done = CliRunner().invoke(app, [*base, "--degrees", "0,8", "--json"])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert [row["degree"] for row in content["results"]] == [0, 8]
    table = CliRunner().invoke(app, [*base, "--budget-ms", "1000"])
    assert "random weights" in table.stdout
    assert "queue" in table.stdout
    bad = CliRunner().invoke(app, [*base, "--budget-ms", "nan"])
    assert isinstance(bad.exception, RequestError)

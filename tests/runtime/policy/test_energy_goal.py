"""``goal="energy"``: the cheapest degree within a stated loss of accuracy, and what a budget does to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_bundles import SmallBundle, images_of, write_small_bundle
from small_profiles import write_profile
from typer.testing import CliRunner

from tocom.cli import add_verbs
from tocom.errors import CalibrationError, RequestError
from tocom.runtime import Runtime
from tocom.runtime.policy.choice import Candidate, choose, frontier, rank_for_energy

TIMES = {0: 40.0, 4: 30.0, 8: 20.0}
ACCURACY = {0: 0.80, 4: 0.795, 8: 0.76}
# Not in the order of the times: a degree may be faster and yet take more.
ENERGY = {0: 300.0, 4: 150.0, 8: 100.0}


@pytest.fixture
def measured(tmp_path: Path) -> SmallBundle:
    bundle = write_small_bundle(tmp_path / "bundle")
    write_profile(bundle, TIMES, accuracy=ACCURACY, millijoules=ENERGY)
    return bundle


@pytest.mark.parametrize(("max_loss", "degree"), [(0.0, 0), (0.004, 0), (0.005, 4), (0.02, 4), (0.05, 8)])
def test_the_cheapest_within_the_loss_answers(measured: SmallBundle, max_loss: float, degree: int) -> None:
    with Runtime.open(measured.path, goal="energy", max_loss=max_loss) as runtime:
        assert runtime.infer(images_of(1)).degree == degree
    with Runtime.open(measured.path) as runtime:
        assert runtime.infer(images_of(1)).degree == 0


def test_where_the_budget_leaves_none_of_them_the_most_accurate_in_time_answers(measured: SmallBundle) -> None:
    with Runtime.open(measured.path, goal="energy", max_loss=0.01) as runtime:
        assert runtime.infer(images_of(1), budget_ms=35).degree == 4
        assert runtime.infer(images_of(1), budget_ms=25).degree == 8


shares = st.integers(0, 1024).map(lambda parts: parts / 1024)  # sums and differences of these are exact
costs = st.lists(
    st.tuples(st.floats(1, 100), shares, st.integers(1, 1000)), min_size=1, max_size=6, unique_by=lambda c: c[2]
)


@given(costs, shares, st.floats(1, 120))
def test_against_all_degrees_looked_at_one_by_one(
    rows: list[tuple[float, float, int]], max_loss: float, budget_ms: float
) -> None:
    times, accuracy, energy = (dict(enumerate(column)) for column in zip(*rows, strict=True))
    ranks = rank_for_energy(accuracy, energy, max_loss)
    chosen = choose(frontier([Candidate(d, ranks[d], times[d]) for d in times]), budget_ms)
    in_time = [degree for degree in times if times[degree] <= budget_ms]
    allowed = [degree for degree in in_time if accuracy[degree] >= max(accuracy.values()) - max_loss]
    if allowed:
        assert energy[chosen.degree] == min(energy[degree] for degree in allowed)
    elif in_time:
        assert accuracy[chosen.degree] == max(accuracy[degree] for degree in in_time)
    else:
        assert not chosen.feasible


def test_what_no_profile_tells_is_refused_by_name(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    with pytest.raises(CalibrationError, match=r"needs the energy of every degree .* tocom calibrate"):
        Runtime.open(bundle.path, goal="energy", max_loss=0.01)
    write_profile(bundle, TIMES, millijoules=ENERGY)
    with pytest.raises(CalibrationError, match="needs the accuracy of every degree"):
        Runtime.open(bundle.path, goal="energy", max_loss=0.01)


@pytest.mark.parametrize(
    "options",
    [
        {"goal": "speed"},
        {"goal": "energy"},
        {"goal": "energy", "max_loss": -0.1},
        {"goal": "energy", "max_loss": 1.0},
        {"goal": "energy", "max_loss": True},
        {"max_loss": 0.01},
    ],
)
def test_bad_goals(measured: SmallBundle, options: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="parameter"):
        Runtime.open(measured.path, **options)  # type: ignore[arg-type]


def test_the_command_line_takes_points(measured: SmallBundle, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    app = typer.Typer()
    add_verbs(app, "run")
    call = [str(measured.path), "--images", str(tmp_path / "a.png"), "--json"]
    for points, degree in (("0.4", 0), ("0.5", 4)):
        done = CliRunner().invoke(app, [*call, "--goal", "energy", "--max-loss", points])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["answers"][0]["degree"] == degree

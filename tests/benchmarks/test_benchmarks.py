"""The benchmarks' shared parts, the comparison at a small size, and the page against the committed figures."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy_against_cost  # noqa: E402
import compare  # noqa: E402
import compare_page  # noqa: E402
import compare_pictures  # noqa: E402
import measuring  # noqa: E402

from tocom.quickstart.cells import Cell  # noqa: E402
from tocom.quickstart.head import fit_head  # noqa: E402

torch.set_num_threads(1)


def test_the_page_is_what_the_committed_figures_make():
    assert compare_page.PAGE.read_text(encoding="utf-8") == compare_page.page(measuring.RESULTS), (
        "docs/benchmarks.md does not follow benchmarks/results: run python benchmarks/compare_page.py"
    )


@pytest.mark.parametrize(
    ("result", "pictures"), [("compare-cpu", "benchmark-batch-*.svg"), ("accuracy_against_cost", "accuracy-*.svg")]
)
def test_the_pictures_are_of_the_committed_figures(result, pictures):
    path, drawn = measuring.RESULTS / f"{result}.json", sorted(compare_page.IMAGES.glob(pictures))
    assert bool(drawn) == path.exists()
    for picture in drawn:
        expected = compare_pictures.digest(json.loads(path.read_text(encoding="utf-8")))
        assert expected in picture.read_text(encoding="utf-8"), f"{picture.name} is of other figures"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Figures of a small model: everything but compiling and starting processes."""
    out = tmp_path_factory.mktemp("quick") / "compare-cpu.json"
    small = ["--quick", "--compile-minutes", "0", "--starts", "0", "--share", "0", "--threads", "1", "--out"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "QUICK", compare.QUICK[:1])
        for name in (
            "TORCHINDUCTOR_CACHE_DIR",
            "TOCOM_CACHE",
        ):  # main() sets them; the tests after this one keep theirs
            patch.setenv(name, "")
        compare.main([*small, str(out)])
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_comparison_times_every_system(quick):
    group = quick["groups"][0]
    timed = {(row["system"], row["degree"]) for row in group["rows"] if "samples_ms" in row}
    assert {("tocom", 0), ("tocom", 4), ("torch", 0), ("torch", 4), ("onnxruntime", 0)} <= timed
    if importlib.util.find_spec("openvino"):
        assert {("openvino", 0), ("tocom-openvino", 0), ("tocom-openvino", 4)} <= timed
    samples = [row["samples_ms"] for row in group["rows"] if "samples_ms" in row]
    assert all(len(values) == 3 and min(values) > 0 for values in samples)
    failed = {row["system"]: row["error"] for row in group["rows"] if "error" in row}
    assert failed.pop("torch-compiled") == "not compiled: the time for compiling was used up"
    assert all("openvino" in error for error in failed.values()), failed
    assert quick["machine"]["cores"]
    assert quick["exports"][0]["bundle_bytes"] > quick["exports"][0]["dense_onnx_bytes"] * 0.5


@pytest.mark.slow
def test_the_page_shows_the_figures_that_it_is_given(quick, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    shutil.copy(measuring.RESULTS / "quickstart.json", results)
    changed = copy.deepcopy(quick)
    row = next(r for r in changed["groups"][0]["rows"] if r["system"] == "torch" and r["degree"] == 4)
    own = next(r for r in changed["groups"][0]["rows"] if r["system"] == "tocom" and r["degree"] == 4)
    own["samples_ms"], row["samples_ms"] = [2.0, 4.0, 3.0], [6.0, 14.0, 9.0]
    (results / "compare-cpu.json").write_text(json.dumps(changed), encoding="utf-8")
    text = compare_page.page(results)
    assert "| 3.00 [2.00, 4.00] |" in text
    assert "9.00 [6.00, 14.0]" in text
    assert "3.00 [3.00, 3.50]" in text
    assert "A quick run" in text
    compare_pictures.draw_speed(changed, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["benchmark-batch-1.svg"]


def test_a_missing_measurement_is_said_to_be_missing(tmp_path):
    text = compare_page.page(tmp_path)
    assert text.count("Not measured yet") == 4


def test_variants_are_timed_in_turns():
    calls = []
    variants = {name: lambda name=name: (calls.append(name), time.sleep(0.002)) for name in "abc"}
    times = measuring.interleave(variants, seconds=0, least_rounds=4, settle_s=0)
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 4)
    assert all(value >= 2.0 for values in times.values() for value in values)
    turns = [name for place, name in enumerate(calls) if place == 0 or calls[place - 1] != name]
    orders = {tuple(turns[start : start + 3]) for start in range(0, len(turns) - 2, 3)}
    assert len(orders) > 1, "the order is not drawn again"


def test_median_interval_holds_what_it_promises():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        median, low, high = measuring.median_interval(generator.exponential(size=12).tolist())
        assert low <= median <= high
        hits += low <= np.log(2) <= high
    assert 0.945 < hits / 2000 < 0.985
    assert measuring.median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert measuring.median_interval(list(map(float, range(1, 7))))[1:] == (1.0, 6.0)


def test_ratios_are_within_a_round():
    # The machine is twice as slow in the second round; the ratio does not see it.
    assert measuring.paired_ratio([10.0, 20.0, 10.0], [5.0, 10.0, 5.0]) == (2.0, 2.0, 2.0)


@pytest.fixture
def cells(tmp_path):
    generator = np.random.default_rng(0)
    made = []
    for index in range(12):
        label = index % 2
        pixels = generator.integers(0, 120, (40, 40, 3)) + 120 * label
        path = tmp_path / f"{index}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        made.append(Cell(path, label))
    return made


def test_ways_are_scored_against_the_dense_features(cells):
    generator = np.random.default_rng(0)
    dense = generator.standard_normal((12, 8)).astype(np.float32)
    head = fit_head(torch.from_numpy(dense), [cell.label for cell in cells])
    labels = np.array([cell.label for cell in cells])
    right, losses = accuracy_against_cost.classify(head, dense, labels)
    assert right.mean() >= 0.9
    assert (np.exp(-losses) > 0.5).tolist() == right.tolist()
    ranks = accuracy_against_cost.ranks(dense[:5] * 3, dense)
    assert ranks.tolist() == [1] * 5
    turned = dense[[1, 0, 2]]  # the first two are taken for one another
    assert accuracy_against_cost.ranks(turned, dense)[:2].min() > 1
    found = accuracy_against_cost.searched(np.array([1, 2, 6, 1]), np.array([1, 1, 1, 1]))
    assert (found["recall_1"]["value"], found["recall_5"]["value"]) == (0.5, 0.75)
    assert found["mean_reciprocal_rank"] == pytest.approx((1 + 1 / 2 + 1 / 6 + 1) / 4)
    assert found["recall_1_difference"]["value"] == -0.5


def test_another_view_is_seeded_and_near():
    picture = Image.fromarray(np.random.default_rng(0).integers(90, 110, (300, 300)).astype(np.uint8))
    views = [accuracy_against_cost.other_view(picture, seed) for seed in (0, 0, 1)]
    assert views[0].tobytes() == views[1].tobytes() != views[2].tobytes()
    assert all(min(view.size) >= 0.98 * 300 for view in views)
    assert all(abs(np.asarray(view).mean() - 100) < 5 for view in views)


def test_difference_is_paired():
    dense = np.array([True] * 60 + [False] * 40)
    same = accuracy_against_cost.difference(dense, dense)
    assert same == {"value": 0.0, "low": 0.0, "high": 0.0}
    worse = accuracy_against_cost.difference(np.array([True] * 50 + [False] * 50), dense)
    assert worse["value"] == pytest.approx(-0.1)
    assert worse["low"] < -0.1 < worse["high"] < 0


def test_the_export_s_figures_stand_on_the_page(tmp_path):
    assert "`python benchmarks/export_time.py --write`" in compare_page.page(tmp_path)
    report = {
        "model": "deit_small_patch16_224",
        "degrees": [0, 8],
        "seconds": 14.253,
        "seconds_by_step": {"tracing": 8.4, "writing": 1.0, "checking": 4.8},
        "peak_mb": 1450.8,
        "bundle_mb": 102.2,
        "checked": 2,
        "machine": {"processor": "AMD EPYC", "cores": "2", "torch": "2.15.0"},
        "load_average_before": 0.1,
    }
    (tmp_path / "export.json").write_text(json.dumps(report))
    text = compare_page.page(tmp_path)
    assert "at 2 degrees, 2 of them checked" in text
    assert "**14 s** (tracing 8.4 s, writing 1.0 s, checking 4.8 s), a bundle of 102 MB, at most 1451 MB" in text

"""Calibration on real bundles: latency, accuracy, agreement, the saved profile, the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from small_bundles import CLASSES, SIZE, SmallBundle, images_of, write_small_bundle

from tocom.calibration import (
    calibrate,
    collect_answers,
    images_needed,
    run_latency,
    wilson_interval,
)
from tocom.errors import BundleError, DataError, OutputError, RequestError
from tocom.formats.profile import Profile, find_profiles
from tocom.runtime import Runtime


@pytest.fixture
def bundle(tmp_path: Path) -> SmallBundle:
    return write_small_bundle(tmp_path / "bundle")


def image_folder(path: Path, classes: int = 3, each: int = 4) -> Path:
    generator = np.random.default_rng(0)
    for name in range(classes):
        (path / str(name)).mkdir(parents=True)
        for index in range(each):
            pixels = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / str(name) / f"{index}.png")
    return path


@given(st.integers(1, 3000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_interval_equals_scipys(pair: tuple[int, int]) -> None:
    right, count = pair
    low, high = wilson_interval(right, count)
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= low <= right / count <= high <= 1


def test_wilson_interval_refuses_nonsense() -> None:
    for right, count in ((0, 0), (-1, 3), (4, 3)):
        with pytest.raises(RequestError, match="0 <= right <= count"):
            wilson_interval(right, count)


def test_latency_orders_degrees_by_their_work(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "b", width=512, layers=[16, 8, 2])
    rounds: list[tuple[str, int, int]] = []
    with Runtime.open(bundle.path) as runtime:
        latency = run_latency(runtime, samples=20, progress=lambda *step: rounds.append(step)).latency
    assert list(latency) == [0, 4, 8]
    assert latency[0].p50_ms > latency[4].p50_ms > latency[8].p50_ms > 0
    assert all(20 <= entry.count <= 30 for entry in latency.values())
    assert {entry.count for entry in latency.values()} == {latency[0].count}
    assert rounds[-1][1] == rounds[-1][2] >= 20
    assert all(done < total for _, done, total in rounds[:-1])


@pytest.mark.parametrize(
    "argument", [{"samples": 0}, {"samples": 1.5}, {"samples": True}, {"tolerance": 0}, {"tolerance": 1.5}]
)
def test_bad_sample_counts(bundle: SmallBundle, argument: dict[str, Any]) -> None:
    with (
        Runtime.open(bundle.path) as runtime,
        pytest.raises(RequestError, match=r"must be an integer >=|must be a share"),
    ):
        run_latency(runtime, **argument)


def test_measuring_stops_when_the_intervals_are_narrow_and_all_samples_are_kept(bundle: SmallBundle) -> None:
    with Runtime.open(bundle.path) as runtime:
        run = run_latency(runtime, samples=3000, tolerance=0.9)
        again = run_latency(runtime, samples=5, tolerance=0.001)
    assert run.stopped.startswith("all intervals within")
    assert 72 <= run.latency[0].count < 3000
    assert run.rounds_ms.shape == (run.latency[0].count + run.steadiness.warmup_rounds, 3)
    assert again.stopped == "5 samples per degree reached (some have no interval, wanted ± 0.1%)"


def test_another_batch_is_measured_beside_the_usual_one(bundle: SmallBundle) -> None:
    usual, of_two = calibrate(bundle.path, samples=5), calibrate(bundle.path, samples=5, batch=2)
    assert (usual.batch, of_two.batch) == (1, 2)
    assert len(list((bundle.path / "profiles").glob("*.json"))) == 2
    with Runtime.open(bundle.path) as runtime:
        assert runtime.profile == usual
        expected = of_two.degrees[4].latency.p50_ms
        assert runtime.stats()["latency_model"]["scale"]["degree 4, batch 2"] == pytest.approx(
            expected / usual.degrees[4].latency.p50_ms
        )
    for batch in (0, 5, True):
        with pytest.raises(RequestError, match="must be from 1 to 4"):
            calibrate(bundle.path, batch=batch)


@pytest.mark.parametrize("batch", [1, 3])
def test_accuracy_equals_the_reference(bundle: SmallBundle, batch: int) -> None:
    images = images_of(20, seed=7)
    labels = [int(label) for label in bundle.reference(images, 4).argmax(-1)]
    labels[:5] = [(label + 1) % CLASSES for label in labels[:5]]
    with Runtime.open(bundle.path) as runtime:
        accuracy = collect_answers(runtime, zip(images, labels, strict=True), batch=batch).accuracy()
    for degree, entry in accuracy.items():
        expected = float((bundle.reference(images, degree).argmax(-1) == labels).mean())
        assert (entry.kind, entry.count) == ("top1", 20)
        assert entry.value == pytest.approx(expected)
        assert entry.low < entry.value < entry.high or entry.value in (0.0, 1.0)
    assert accuracy[4].value == 0.75


@given(st.floats(0, 1), st.floats(0.005, 0.5))
def test_images_needed_is_the_least_that_suffices(share: float, half_width: float) -> None:
    def half(count: int) -> float:
        z = 1.959963984540054
        return z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5

    needed = images_needed(share, half_width)
    assert half(needed) <= half_width
    assert needed == 1 or half(needed - 1) > half_width


def test_too_few_images_for_the_interval(bundle: SmallBundle) -> None:
    images = images_of(20, seed=7)
    samples = list(zip(images, (int(label) for label in bundle.reference(images, 4).argmax(-1)), strict=True))
    with pytest.raises(DataError, match=r"20 images give the accuracy of degree \d+ to ±[\d.]+ points; ±2 needs about"):
        calibrate(bundle.path, samples, interval_points=2.0, samples=2)
    assert not list((bundle.path / "profiles").glob("*"))
    profile = calibrate(bundle.path, samples, interval_points=50, samples=2)
    assert profile.degrees[4].accuracy is not None
    assert profile.degrees[4].accuracy.value == 1.0
    dense = profile.degrees[0].agreement
    assert dense is not None
    assert (dense.kind, dense.value) == ("agreement", 1.0)


def test_one_class_only(bundle: SmallBundle, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", classes=1)
    with Runtime.open(bundle.path) as runtime, pytest.raises(DataError, match="All 4 images are of one class, 0"):
        collect_answers(runtime, folder)


def test_images_of_any_size_and_mode(bundle: SmallBundle, tmp_path: Path) -> None:
    for index, (mode, size) in enumerate((("L", (30, 9)), ("RGBA", (8, 8)), ("P", (5, 40)), ("I;16", (16, 16)))):
        folder = tmp_path / "images" / str(index % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 1).save(folder / f"{index}.png")
    with Runtime.open(bundle.path) as runtime:
        assert collect_answers(runtime, tmp_path / "images").accuracy()[0].count == 4


def test_agreement_without_labels(bundle: SmallBundle) -> None:
    images = images_of(30, seed=1)
    with Runtime.open(bundle.path) as runtime:
        accuracy = collect_answers(runtime, ((image, None) for image in images)).accuracy()
    dense = bundle.reference(images, 0).argmax(-1)
    assert accuracy[0].value == 1.0
    for degree in (4, 8):
        assert accuracy[degree].kind == "agreement"
        assert accuracy[degree].value == pytest.approx(
            float((bundle.reference(images, degree).argmax(-1) == dense).mean())
        )


def test_folders_with_and_without_classes(bundle: SmallBundle, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images")
    with Runtime.open(bundle.path) as runtime:
        assert collect_answers(runtime, folder).accuracy()[0].kind == "top1"
        flat = collect_answers(runtime, folder / "0").accuracy()
    assert (flat[0].kind, flat[0].count) == ("agreement", 4)


def test_bad_samples(bundle: SmallBundle, tmp_path: Path) -> None:
    image = images_of(1)[0]
    with Runtime.open(bundle.path) as runtime:
        for samples, message in (
            ([], "at least one image"),
            ([(image, 1), (image, None)], "Got 1 labels for 2 images"),
            ([(image, CLASSES)], f"class index {CLASSES}, the model has {CLASSES} classes"),
            (tmp_path / "none", "No image folder"),
        ):
            with pytest.raises(DataError, match=message):
                collect_answers(runtime, samples)  # type: ignore[arg-type]


def test_a_bundle_without_logits_has_no_accuracy(bundle: SmallBundle) -> None:
    manifest = json.loads((bundle.path / "bundle.json").read_text())
    manifest["outputs"][0]["name"] = "features"
    with Runtime.open(bundle.path) as runtime:
        runtime.bundle.manifest = manifest
        with pytest.raises(DataError, match="gives features, no logits"):
            collect_answers(runtime, [(images_of(1)[0], 0)])


def test_calibrate_saves_what_the_runtime_then_uses(bundle: SmallBundle, tmp_path: Path) -> None:
    profile = calibrate(bundle.path, image_folder(tmp_path / "images"), samples=5)
    assert Profile.load(bundle.path / "profiles" / f"{profile.fingerprint}.json") == profile
    assert all(entry.accuracy is not None and entry.latency.count == 5 for entry in profile.degrees.values())
    with Runtime.open(bundle.path) as runtime:
        assert runtime.profile == profile


def test_opening_reads_each_profile_once(bundle: SmallBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for batch in (2, 4):
        calibrate(bundle.path, samples=3, batch=batch)
    read: list[Path] = []
    load = Profile.load
    monkeypatch.setattr(Profile, "load", staticmethod(lambda path: [read.append(path), load(path)][1]))
    with Runtime.open(bundle.path) as runtime:
        assert runtime.profile is not None
    assert sorted(read) == find_profiles(bundle.path)


def test_calibrate_twice_replaces(bundle: SmallBundle) -> None:
    calibrate(bundle.path, samples=3)
    calibrate(bundle.path, samples=4)
    (path,) = (bundle.path / "profiles").glob("*.json")
    (samples,) = (bundle.path / "profiles").glob("*.csv")
    lines = samples.read_text().splitlines()
    assert lines[0] == "round,seconds,warmup,degree_0_ms,degree_4_ms,degree_8_ms"
    assert len(lines) == 5
    assert Profile.load(path).degrees[0].latency.count == 4


@pytest.mark.fault("images that cannot be read while calibrating", outcome="DataError; no profile is saved")
def test_an_unreadable_image_stops_before_anything_is_saved(bundle: SmallBundle, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images")
    (folder / "1" / "9.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1/9\.png"):
        calibrate(bundle.path, folder, samples=1000)
    assert not list((bundle.path / "profiles").glob("*"))


def test_nowhere_to_save(bundle: SmallBundle) -> None:
    (bundle.path / "profiles").write_text("in the way")
    with pytest.raises(OutputError):
        calibrate(bundle.path, samples=1)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No bundle at"):
        calibrate(tmp_path / "none")

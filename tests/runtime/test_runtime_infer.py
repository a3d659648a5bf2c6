"""The runtime on real bundles under ONNX Runtime: right answers, budgets, profiles, lifecycle."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from small_bundles import SIZE, SmallBundle, images_of
from small_profiles import profile_for

from tocom.errors import BudgetError, BundleError, CalibrationError, DegreeError, EngineError, RequestError
from tocom.runtime import Runtime
from tocom.runtime.checks import check_outputs


@pytest.mark.parametrize("degree", [0, 4, 8])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_degree_answers_right(small_bundle: SmallBundle, degree: int, batch: int) -> None:
    images = images_of(batch, seed=degree)
    with Runtime.open(small_bundle.path) as runtime:
        result = runtime.infer(images, degree=degree)
    assert result.degree == degree
    np.testing.assert_allclose(result.outputs["logits"], small_bundle.reference(images, degree), atol=1e-4)


def test_budget_chooses_the_most_accurate_that_fits(small_bundle: SmallBundle) -> None:
    with Runtime.open(small_bundle.path) as runtime:
        profile = profile_for(runtime, {0: 30.0, 4: 20.0, 8: 10.0})
    taken = {}
    for budget in (40.0, 25.0, 15.0, 5.0):
        with Runtime.open(small_bundle.path, profile=profile) as runtime:
            result = runtime.infer(images_of(1), budget_ms=budget)
        taken[budget] = (result.degree, result.feasible)
        assert result.met_budget == (result.latency_ms <= budget)
    assert taken == {40.0: (0, True), 25.0: (4, True), 15.0: (8, True), 5.0: (8, False)}


def test_measured_accuracy_decides_and_dominated_degrees_are_never_used(small_bundle: SmallBundle) -> None:
    with Runtime.open(small_bundle.path) as runtime:
        profile = profile_for(runtime, {0: 30.0, 4: 20.0, 8: 10.0}, {0: 0.9, 4: 0.8, 8: 0.85})
    with Runtime.open(small_bundle.path, profile=profile) as runtime:
        degrees = {runtime.infer(images_of(1), budget_ms=budget).degree for budget in (40.0, 25.0, 22.0, 12.0)}
    assert degrees == {0, 8}


def test_no_budget_takes_the_most_accurate(small_bundle: SmallBundle) -> None:
    with Runtime.open(small_bundle.path) as runtime:
        result = runtime.infer(images_of(1))
    assert (result.degree, result.met_budget, result.budget_ms) == (0, True, None)


def test_infeasible_raises_when_asked(small_bundle: SmallBundle) -> None:
    with (
        Runtime.open(small_bundle.path, on_infeasible="raise") as runtime,
        pytest.raises(BudgetError, match=r"No degree meets the budget: .* ms are left, the fastest degree, 8, needs"),
    ):
        runtime.infer(images_of(1), budget_ms=1e-6)


def test_a_short_profile_is_measured_with_a_warning(
    small_bundle: SmallBundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Runtime.open(small_bundle.path) as runtime:
        assert runtime.profile is not None
        assert set(runtime.profile.degrees) == {0, 4, 8}
    assert "tocom calibrate" in caplog.text


@pytest.mark.fault(
    "a profile of another device", outcome="a warning that names the difference; given by name: CalibrationError"
)
def test_a_saved_profile_is_found_and_a_foreign_one_ignored_by_name(
    own_bundle: SmallBundle, caplog: pytest.LogCaptureFixture
) -> None:
    with Runtime.open(own_bundle.path) as runtime:
        mine = profile_for(runtime, {0: 30.0, 4: 20.0, 8: 10.0})
    foreign = replace(mine, device={**mine.device, "processor": "another"})
    foreign.save(own_bundle.path)
    with caplog.at_level(logging.WARNING), Runtime.open(own_bundle.path) as runtime:
        assert runtime.profile is not None
        assert runtime.profile.interval != "test"
    assert "device processor is" in caplog.text
    assert "another" in caplog.text
    mine.save(own_bundle.path)
    with Runtime.open(own_bundle.path) as runtime:
        assert runtime.profile == mine
    with pytest.raises(CalibrationError, match="does not hold here: device processor is"):
        Runtime.open(own_bundle.path, profile=foreign)


@pytest.mark.fault("a broken profile beside the bundle", outcome="a warning that names it; a short one is measured")
def test_a_broken_profile_beside_the_bundle_is_ignored_by_name(
    own_bundle: SmallBundle, caplog: pytest.LogCaptureFixture
) -> None:
    folder = own_bundle.path / "profiles"
    folder.mkdir()
    (folder / "bad.json").write_text("{")
    with caplog.at_level(logging.WARNING), Runtime.open(own_bundle.path):
        pass
    assert "ignored a profile" in caplog.text
    assert "bad.json" in caplog.text


@pytest.mark.parametrize("budget", [0, -1, float("nan"), "12", None.__class__, True, 10**400])
def test_bad_budgets(small_bundle: SmallBundle, budget: object) -> None:
    with (
        Runtime.open(small_bundle.path) as runtime,
        pytest.raises(RequestError, match="'budget_ms' parameter must be a number") as caught,
    ):
        runtime.infer(images_of(1), budget_ms=budget)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (images_of(1)[0], r"Got \[3, 8, 8\] instead. Add the batch dimension"),
        (images_of(1).astype(np.float64), "must be float32. Got float64"),
        ((images_of(1) * 50).astype(np.uint8), "must be float32. Got uint8"),
        (images_of(1).transpose(0, 2, 3, 1), "looks like height-width-channels"),
        (np.zeros((1, 3, SIZE, SIZE + 1), np.float32), r"must have the shape \[batch, 3, 8, 8\]"),
        (images_of(5), r"batch of 1…4 .* Got 5 instead"),
        (np.zeros((0, 3, SIZE, SIZE), np.float32), r"batch of 1…4 .* Got 0 instead"),
        ([[1.0]], r"must be bytes, a path, a PIL image or an array of uint8\. Got builtins\.list"),
        ([], "must hold at least one image"),
        ("images", "must be a numpy array .* Got builtins.str"),
    ],
)
def test_bad_images(small_bundle: SmallBundle, images: object, message: str) -> None:
    with Runtime.open(small_bundle.path) as runtime, pytest.raises(RequestError, match=message) as caught:
        runtime.infer(images, budget_ms=10.0)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.fault("images with NaN or infinity", outcome="RequestError; no answer is made of them")
def test_nan_images_are_refused_when_asked(small_bundle: SmallBundle) -> None:
    images = images_of(1)
    images[0, 0, 0, :2] = (np.nan, np.inf)
    with (
        Runtime.open(small_bundle.path, check_finite=True) as runtime,
        pytest.raises(RequestError, match="Got 2 NaN or infinite values"),
    ):
        runtime.infer(images)
    with Runtime.open(small_bundle.path) as runtime:
        # What is computed from them is not finite either, and no answer.
        with pytest.raises(RequestError, match=r"must be finite \(the answer to them is not\)\. Got 2 NaN or infinite"):
            runtime.infer(images)
        assert np.isfinite(runtime.infer(images_of(1)).outputs["logits"]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [(0, 0), (1, 6), (2, 3)])
@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8", ">f4"])
def test_one_value_that_is_not_finite_is_found(bad: float, index: tuple[int, int], dtype: str) -> None:
    largest = float(np.finfo(dtype).max)
    values = (np.random.default_rng(0).uniform(-1, 1, (3, 7)) * largest).astype(dtype)
    check_outputs({"features": values, "logits": values}, images_of(3), 4)
    wrong = values.copy()
    wrong[index] = bad
    with pytest.raises(EngineError, match="Degree 4 answered 1 of 21 values of 'logits' with NaN or infinity"):
        check_outputs({"features": values, "logits": wrong}, images_of(3), 4)


def test_images_of_another_layout_in_memory_give_the_same_answer(small_bundle: SmallBundle) -> None:
    images = np.asfortranarray(images_of(2))
    with Runtime.open(small_bundle.path) as runtime:
        logits = runtime.infer(images, degree=4).outputs["logits"]
    np.testing.assert_allclose(logits, small_bundle.reference(images, 4), atol=1e-4)


def test_lifecycle(small_bundle: SmallBundle) -> None:
    runtime = Runtime.open(small_bundle.path, warm=False)
    with pytest.raises(RequestError, match=r"this one is loaded\. Call warm_up\(\) first"):
        runtime.infer(images_of(1))
    runtime.warm_up()
    runtime.warm_up()
    runtime.infer(images_of(1))
    runtime.close()
    runtime.close()
    with pytest.raises(RequestError, match=r"this one is closed\. Open the bundle again"):
        runtime.infer(images_of(1))
    with pytest.raises(RequestError, match="this one is closed"):
        runtime.warm_up()


@pytest.mark.parametrize("degree", [4, np.int64(4), 4.0])
def test_an_answer_names_its_degree_by_an_integer(small_bundle: SmallBundle, degree: int) -> None:
    with Runtime.open(small_bundle.path) as runtime:
        assert type(runtime.infer(images_of(1), degree=degree).degree) is int
        for wrong in (5, "4", [4], True):
            with pytest.raises(DegreeError, match="'degree'"):
                runtime.infer(images_of(1), degree=wrong)  # type: ignore[arg-type]


def test_chosen_degrees_only(small_bundle: SmallBundle) -> None:
    with Runtime.open(small_bundle.path, degrees=[8, 0]) as runtime:
        assert runtime.degrees == (0, 8)
        with pytest.raises(DegreeError, match=r"must be one of \[0, 8\]. Got 4"):
            runtime.infer(images_of(1), degree=4)
    for bad in ([0, 5], []):
        with pytest.raises(DegreeError, match=r"must name degrees of .*: \[0, 4, 8\]"):
            Runtime.open(small_bundle.path, degrees=bad)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"backend": "tpu"}, RequestError, "'backend' parameter must be one of auto"),
        ({"threads": 0}, RequestError, "'threads' parameter must be an integer from 1 to 1024"),
        ({"threads": 100_000}, RequestError, "'threads' parameter must be an integer from 1 to 1024. Got 100000"),
        ({"on_infeasible": "wait"}, RequestError, "'on_infeasible' parameter must be one of fastest, raise"),
        ({"quantile": 1.0}, RequestError, "'quantile' parameter"),
        ({"backend": "onnxruntime-cuda"}, EngineError, "no CUDA provider. Install it"),
    ],
)
def test_bad_options(
    small_bundle: SmallBundle, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Runtime.open(small_bundle.path, **arguments)  # type: ignore[arg-type]


def test_auto_says_why(small_bundle: SmallBundle) -> None:
    with Runtime.open(small_bundle.path) as runtime:
        assert runtime.backend.name == "onnxruntime"
        assert "Not onnxruntime-cuda" in runtime.backend.reason


def test_a_tampered_bundle_is_refused(own_bundle: SmallBundle) -> None:
    weights = own_bundle.path / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"weights\.bin has sha256"):
        Runtime.open(own_bundle.path)


def test_a_missing_engine_file_is_refused(own_bundle: SmallBundle) -> None:
    (own_bundle.path / "degree-04.onnx").unlink()
    with pytest.raises(BundleError, match=r"degree-04\.onnx cannot be read"):
        Runtime.open(own_bundle.path)


def test_results_do_not_share_memory(small_bundle: SmallBundle) -> None:
    with Runtime.open(small_bundle.path) as runtime:
        first = runtime.infer(images_of(1, seed=1), degree=0).outputs["logits"]
        kept = first.copy()
        runtime.infer(images_of(1, seed=2), degree=0)
    np.testing.assert_array_equal(first, kept)


def test_stats_count_answers_misses_and_switches(small_bundle: SmallBundle) -> None:
    with Runtime.open(small_bundle.path) as runtime:
        profile = profile_for(runtime, {0: 30.0, 4: 20.0, 8: 10.0})
    with Runtime.open(small_bundle.path, profile=profile) as runtime:
        for budget in (40.0, 15.0, 1e-6):
            runtime.infer(images_of(1), budget_ms=budget)
        stats = runtime.stats()
    assert stats["answers"] == {"0": 1, "8": 2}
    assert (stats["requests"], stats["misses"], stats["switches"]) == (3, 1, 1)
    json.dumps(stats, allow_nan=False)


def test_the_runtime_imports_and_answers_without_torch_timm_onnx_and_typer(small_bundle: SmallBundle) -> None:
    script = f"""
import sys
for name in ("torch", "timm", "onnx", "typer", "rich", "PIL", "scipy"):
    sys.modules[name] = None
import tocom.runtime
assert "onnxruntime" not in sys.modules
import numpy as np
with tocom.runtime.Runtime.open({str(small_bundle.path)!r}) as runtime:
    print(runtime.infer(np.zeros((1, 3, {SIZE}, {SIZE}), np.float32), budget_ms=12.0).outputs["logits"].shape)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 5)"

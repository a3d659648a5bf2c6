"""Engines that answer wrongly: none serves, whatever the backend; the others, or the old bundle, serve on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_cuda import HostCuda
from scripted_engines import DEGREES, ScriptedTensorRt, write_engines
from scripted_engines import reference as scripted_answers
from small_bundles import SmallBundle, images_of, put_references, seal_bundle, write_small_bundle
from wrong_engines import WRONG, make_wrong

from tocom.errors import BundleError, EngineError
from tocom.formats.bundle import MANIFEST_NAME, Bundle
from tocom.runtime import Runtime
from tocom.runtime.backends import select
from tocom.runtime.backends.tensorrt.backend import TensorRtBackend
from tocom.runtime.backends.tensorrt.device.libcuda import LibcudaDevice

CPU_BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedTensorRt:
    """TensorRT's module over a scripted driver, opened by the name ``tensorrt``."""
    cuda = HostCuda()
    trt = ScriptedTensorRt(cuda, version="10.3.0")

    def opener(bundle: Bundle, threads: int | None, reason: str) -> TensorRtBackend:
        del threads
        device = LibcudaDevice(path=cuda.path)
        return TensorRtBackend(bundle, name="tensorrt", reason=reason, trt=trt, device=device)

    monkeypatch.setitem(select._OPENERS, "tensorrt", opener)
    return trt


def write_scripted(bundle: SmallBundle, engines: dict[int, dict[str, Any]]) -> None:
    write_engines(bundle, "tensorrt-10.3.0-host-gpu-0-sm87", backend_version="10.3.0", engines=engines)


@pytest.mark.fault("an engine that answers zeros", outcome="refused when it is opened; the message holds the figures")
@pytest.mark.fault("an engine that answers NaN", outcome="refused when it is opened; the message holds the figures")
@pytest.mark.fault(
    "an engine with another model's weights", outcome="refused when it is opened; the message holds the figures"
)
@pytest.mark.fault(
    "an engine whose classes are permuted", outcome="refused when it is opened; the message holds the figures"
)
@pytest.mark.fault(
    "an engine whose answers have cosine 0.9 to the right ones",
    outcome="refused when it is opened; the message holds the figures",
)
@pytest.mark.fault(
    "an engine that swaps the rows of a batch", outcome="refused when it is opened; the message holds the figures"
)
@pytest.mark.fault(
    "an engine that is right at batch 1 and wrong at 4",
    outcome="refused when it is opened; the message holds the figures",
)
@pytest.mark.parametrize("kind", [*WRONG, "another model"])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_no_engine_that_answers_wrongly_is_opened(bundle: SmallBundle, backend: str, kind: str) -> None:
    pytest.importorskip(backend)
    make_wrong(bundle.path, kind)
    with pytest.raises(EngineError) as error:
        Runtime.open(bundle.path, backend, threads=1)
    message = str(error.value)
    assert message.startswith(f"{backend} ")
    assert "answers wrongly at every degree" in message
    assert f"tocom check {bundle.path}" in message
    assert "\n" not in message
    assert ("not finite" if kind == "NaN" else "largest difference") in message
    if kind == "wrong above batch 1":
        assert "degree 0, batch 4, run 1" in message
    with Runtime.open(bundle.path, backend, threads=1, check_answers=False) as runtime:
        assert runtime.degrees == (0, 4, 8)


@pytest.mark.parametrize("kind", WRONG)
def test_no_tensorrt_engine_that_answers_wrongly_is_opened(
    bundle: SmallBundle, scripted: ScriptedTensorRt, kind: str
) -> None:
    write_scripted(bundle, {degree: {"wrong": kind} for degree in DEGREES})
    with pytest.raises(EngineError, match=r"^tensorrt 10\.3\.0 answers wrongly at every degree") as error:
        Runtime.open(bundle.path, "tensorrt")
    assert f"tocom build {bundle.path} --backend tensorrt" in str(error.value)
    assert scripted.cuda.live("device") == 0, "what the refused engines held must be given back"


@pytest.mark.fault(
    "an engine that is right when launched plainly and wrong when captured",
    outcome="refused when it is opened; the message holds the figures",
)
def test_a_captured_engine_is_compared_too(bundle: SmallBundle, scripted: ScriptedTensorRt) -> None:
    write_scripted(bundle, {degree: {"wrong": "zeros", "when": "captured"} for degree in DEGREES})
    with pytest.raises(EngineError, match=r"answers wrongly at every degree.*degree 0, batch 1, run 2: largest"):
        Runtime.open(bundle.path, "tensorrt")
    assert scripted.cuda.calls("cuGraphLaunch") > 0


@pytest.mark.fault(
    "a device that answers differently from run to run", outcome="the engine is refused, and both differences are told"
)
def test_an_unsteady_device_is_told_apart_from_a_wrong_engine(bundle: SmallBundle, scripted: ScriptedTensorRt) -> None:
    write_scripted(bundle, {degree: {"wrong": "zeros", "when": "every other run"} for degree in DEGREES})
    with pytest.raises(EngineError, match=r"the same images again: largest difference .* from run to run"):
        Runtime.open(bundle.path, "tensorrt")


@pytest.mark.fault(
    "an engine that answers wrongly at one degree of five",
    outcome="it is not served, a warning names it and the command that helps; the four others serve",
)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_the_right_degrees_serve_on(tmp_path: Path, backend: str, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip(backend)
    bundle = write_small_bundle(tmp_path / "five", degrees=(0, 2, 4, 6, 8), layers=(9, 7, 5, 3, 1))
    make_wrong(bundle.path, "cosine 0.9", degrees=(6,))
    with caplog.at_level(logging.WARNING, "tocom.runtime"), Runtime.open(bundle.path, backend, threads=1) as runtime:
        assert runtime.degrees == (0, 2, 4, 8)
        (warning,) = [record.getMessage() for record in caplog.records if "not served" in record.getMessage()]
        assert warning.startswith(f"degree 6 is not served: {backend} ")
        assert "cosine 0.9" in warning or "cosine 0.8" in warning
        assert f"tocom check {bundle.path}" in warning
        checked = runtime.stats()["answers_checked"]
        assert [degree for degree, found in checked.items() if not found["right"]] == ["6"]
        assert json.loads(json.dumps(checked, allow_nan=False)) == checked
        for degree in runtime.degrees:
            images = images_of(2)
            got = runtime.infer(images, degree=degree).outputs["logits"]
            np.testing.assert_allclose(got, bundle.reference(images, degree), rtol=1e-3, atol=1e-4)


@pytest.mark.fault(
    "a bundle that answers wrongly, put in place of a good one", outcome="the reload fails; the old bundle serves on"
)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_reload_to_wrong_answers_changes_nothing(tmp_path: Path, bundle: SmallBundle, backend: str) -> None:
    pytest.importorskip(backend)
    wrong = write_small_bundle(tmp_path / "wrong", seed=1)
    make_wrong(wrong.path, "another model")
    images = images_of(1)
    with Runtime.open(bundle.path, backend, threads=1) as runtime:
        before = runtime.infer(images, degree=4).outputs["logits"]
        with pytest.raises(EngineError, match="answers wrongly at every degree"):
            runtime.reload(wrong.path)
        assert runtime.bundle.path == bundle.path
        np.testing.assert_array_equal(runtime.infer(images, degree=4).outputs["logits"], before)
        runtime.reload(write_small_bundle(tmp_path / "good", seed=1).path)
        assert np.abs(runtime.infer(images, degree=4).outputs["logits"] - before).max() > 0.1


def change_entry(change: Callable[[dict[str, Any]], Any]) -> Callable[[SmallBundle], None]:
    def apply(bundle: SmallBundle) -> None:
        manifest = json.loads((bundle.path / MANIFEST_NAME).read_text())
        change(manifest)
        seal_bundle(bundle.path, manifest)

    return apply


def cut(bundle: SmallBundle) -> None:
    path = bundle.path / "references.bin"
    path.write_bytes(path.read_bytes()[:-4])
    change_entry(lambda manifest: None)(bundle)


def not_finite(bundle: SmallBundle) -> None:
    put_references(bundle.path, lambda images, degree: np.where(degree == 4, np.nan, bundle.reference(images, degree)))


DAMAGES: dict[str, tuple[Callable[[SmallBundle], None], str]] = {
    "none": (change_entry(lambda manifest: manifest.pop("references")), "has no reference answers"),
    "of other degrees": (
        change_entry(lambda manifest: manifest["references"]["degrees"][0].update(degree=2)),
        r"the references are of the degrees \[2, 4, 8\], the bundle has \[0, 4, 8\]",
    ),
    "none conclusive": (
        change_entry(lambda manifest: manifest["references"]["degrees"][0].update(conclusive=[])),
        r"'references\.degrees\[0\]\.conclusive' must be a list of at least 1\. Got \[\] instead",
    ),
    "too many": (
        change_entry(lambda manifest: manifest["references"].update(images=1 << 19)),
        r"'references\.images' must be at most 1024\. Got 524288 instead",
    ),
    "a file that is not there": (
        change_entry(lambda manifest: manifest["references"].update(file="other.bin")),
        r"'other\.bin', which is not under files",
    ),
    "a tolerance of everything": (
        change_entry(lambda manifest: manifest["references"]["degrees"][0].update(tolerance=1e9)),
        r"'references\.degrees\[0\]\.tolerance' must be at most 1\. Got 1000000000\.0 instead",
    ),
    "cut off": (cut, r"references\.bin has \d+ bytes; 4 images"),
    "not finite": (not_finite, r"holds answers that are not finite"),
}


@pytest.mark.fault(
    "reference answers that are missing, damaged, of other degrees, or no numbers",
    outcome="BundleError says which, and what to do; with `check_answers=False` a bundle without them serves",
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_references_are_refused(bundle: SmallBundle, damage: str) -> None:
    apply, message = DAMAGES[damage]
    apply(bundle)
    with pytest.raises(BundleError, match=message) as error:
        Runtime.open(bundle.path, "onnxruntime", threads=1)
    assert "\n" not in str(error.value)
    if damage == "none":
        Runtime.open(bundle.path, "onnxruntime", threads=1, check_answers=False).close()


def test_the_scripted_device_is_right_where_nothing_is_wrong(bundle: SmallBundle, scripted: ScriptedTensorRt) -> None:
    write_scripted(bundle, {})
    with Runtime.open(bundle.path, "tensorrt") as runtime:
        assert runtime.degrees == DEGREES
        images = images_of(3)
        np.testing.assert_allclose(
            runtime.infer(images, degree=4).outputs["logits"], scripted_answers(images, 4), rtol=1e-5
        )

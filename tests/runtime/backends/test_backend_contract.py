"""What every backend that runs on a CPU owes: one contract, checked on each. One that is not installed is skipped."""

from __future__ import annotations

import gc
import importlib.util
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from measured_memory import resident_bytes
from onnx import helper
from small_bundles import SIZE, SmallBundle, images_of, write_small_bundle

from tocom.errors import BundleError, EngineError, RequestError
from tocom.formats.bundle import Bundle
from tocom.formats.profile import DegreeProfile, Latency, Profile
from tocom.runtime import Runtime
from tocom.runtime.backends.select import open_backend
from tocom.runtime.memory.needs import set_bytes
from tocom.runtime.profiles import identity_of


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest) -> str:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed: pip install 'tocom[{request.param}]'")
    return request.param


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_every_degree_answers_right_at_every_batch(small_bundle: SmallBundle, backend: str, batch: int) -> None:
    images = images_of(batch, seed=batch)
    with Runtime.open(small_bundle.path, backend) as runtime:
        assert runtime.backend.name == backend
        for degree in runtime.degrees:
            logits = runtime.infer(images, degree=degree).outputs["logits"]
            assert logits.dtype == np.float32
            np.testing.assert_allclose(logits, small_bundle.reference(images, degree), atol=1e-4)


def test_pixels_answer_as_what_they_are_normalised_to(tmp_path: Any, backend: str) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", input_type="uint8")
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, SIZE, SIZE), np.uint8)
    normalised = (pixels.astype(np.float32) / 255 - 0.5) / 0.5
    with Runtime.open(bundle.path, backend) as runtime:  # its reference images are pixels, too
        for images in (pixels, as_unaligned(pixels), pixels[:, :, ::-1][:, :, ::-1]):
            logits = runtime.infer(images, degree=4).outputs["logits"]
            np.testing.assert_allclose(logits, bundle.reference(normalised, 4), atol=1e-4)
        with pytest.raises(RequestError, match=r"must be uint8\. Got float32 instead\. Give the pixels"):
            runtime.infer(normalised)


def test_a_bundle_of_one_batch_size_answers_right(tmp_path: Any, backend: str) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", batch=(2, 2, 2))
    with Runtime.open(bundle.path, backend) as runtime:
        logits = runtime.infer(images_of(2), degree=4).outputs["logits"]
    np.testing.assert_allclose(logits, bundle.reference(images_of(2), 4), atol=1e-4)


def as_read_only(images: np.ndarray) -> np.ndarray:
    images = images.copy()
    images.flags.writeable = False
    return images


def as_unaligned(images: np.ndarray) -> np.ndarray:
    space = np.empty(images.nbytes + 4, np.uint8)
    moved = space[4:].view(images.dtype).reshape(images.shape)
    moved[:] = images
    return moved


@pytest.mark.parametrize(
    "arrange",
    [
        np.asfortranarray,
        as_read_only,
        as_unaligned,
        lambda images: np.repeat(images, 2, axis=0)[::2],
        lambda images: images[:, :, ::-1].copy()[:, :, ::-1],
    ],
    ids=["columns first", "read-only", "at an odd address", "every other image", "reversed rows"],
)
def test_images_of_any_layout_give_the_same_answer_and_stay_as_they_are(
    small_bundle: SmallBundle, backend: str, arrange: Any
) -> None:
    images = arrange(images_of(2))
    with Runtime.open(small_bundle.path, backend, degrees=[4]) as runtime:
        logits = runtime.infer(images).outputs["logits"]
        again = runtime.infer(images).outputs["logits"]
    np.testing.assert_allclose(logits, small_bundle.reference(images_of(2), 4), atol=1e-4)
    np.testing.assert_array_equal(again, logits)
    np.testing.assert_array_equal(images, images_of(2))


def test_host_memory_of_another_library_is_read(small_bundle: SmallBundle, backend: str) -> None:
    class Foreign:
        def __init__(self, array: np.ndarray) -> None:
            self._array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self._array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self._array.__dlpack_device__()

    with Runtime.open(small_bundle.path, backend, degrees=[4]) as runtime:
        logits = runtime.infer(Foreign(images_of(1))).outputs["logits"]  # type: ignore[arg-type]
    np.testing.assert_allclose(logits, small_bundle.reference(images_of(1), 4), atol=1e-4)


def test_a_later_answer_never_changes_an_earlier_one(small_bundle: SmallBundle, backend: str) -> None:
    with Runtime.open(small_bundle.path, backend) as runtime:
        answers = [runtime.infer(images_of(1, seed), degree=0).outputs["logits"] for seed in range(20)]
    for seed, logits in enumerate(answers):
        np.testing.assert_allclose(logits, small_bundle.reference(images_of(1, seed), 0), atol=1e-4)
        assert logits.flags.writeable


def test_images_may_change_and_go_as_soon_as_they_are_answered(small_bundle: SmallBundle, backend: str) -> None:
    with Runtime.open(small_bundle.path, backend, degrees=[4]) as runtime:
        images = images_of(1)
        kept = runtime.infer(images).outputs["logits"]
        images[:] = np.nan
        del images
        gc.collect()
        np.testing.assert_allclose(
            runtime.infer(images_of(1, seed=1)).outputs["logits"],
            small_bundle.reference(images_of(1, seed=1), 4),
            atol=1e-4,
        )
    np.testing.assert_allclose(kept, small_bundle.reference(images_of(1), 4), atol=1e-4)


def test_any_thread_may_ask(small_bundle: SmallBundle, backend: str) -> None:
    wrong: list[int] = []
    with Runtime.open(small_bundle.path, backend) as runtime:

        def ask(seed: int) -> None:
            for degree in runtime.degrees:
                images = images_of(1 + seed % 3, seed)
                logits = runtime.infer(images, degree=degree).outputs["logits"]
                if not np.allclose(logits, small_bundle.reference(images, degree), atol=1e-4):
                    wrong.append(seed)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_memory_does_not_grow_with_requests(small_bundle: SmallBundle, backend: str) -> None:
    with Runtime.open(small_bundle.path, backend) as runtime:

        def ask(count: int) -> int:
            for place in range(count):
                runtime.infer(images_of(4, seed=place), degree=runtime.degrees[place % 3])
            gc.collect()
            return resident_bytes()

        before = ask(200)
        # A leak of the images of each request, 3 KiB, would be 3 MB.
        assert ask(1000) - before < 2 << 20


def test_an_engine_that_was_closed_says_so(small_bundle: SmallBundle, backend: str) -> None:
    opened = open_backend(backend, Bundle(small_bundle.path), threads=1)
    opened.prepare([4])
    engine = opened.load(4)
    np.testing.assert_allclose(engine.run(images_of(1))["logits"], small_bundle.reference(images_of(1), 4), atol=1e-4)
    opened.close()
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(images_of(1))


def test_a_reload_answers_with_the_new_bundle(tmp_path: Any, backend: str) -> None:
    old, new = (write_small_bundle(tmp_path / name, seed=seed) for seed, name in enumerate(("old", "new")))
    with Runtime.open(old.path, backend) as runtime:
        runtime.reload(new.path)
        logits = runtime.infer(images_of(1), degree=4).outputs["logits"]
    np.testing.assert_allclose(logits, new.reference(images_of(1), 4), atol=1e-4)


def test_a_profile_holds_for_its_backend_alone(own_bundle: SmallBundle, backend: str) -> None:
    with Runtime.open(own_bundle.path, backend) as runtime:
        assert runtime.profile is not None
        identity = identity_of(runtime.bundle, runtime.backend)
        assert identity["device"][backend].split(".")[0].isdigit()
        runtime.profile.save(own_bundle.path)
        assert runtime.profile.mismatch(identity) is None
        assert runtime.profile.mismatch({**identity, "backend": "another"}) is not None
    with Runtime.open(own_bundle.path, backend) as runtime:
        assert isinstance(runtime.profile, Profile)
        assert "short" in runtime.profile.measured["how"]


def test_needs_are_told_before_anything_is_loaded(small_bundle: SmallBundle, backend: str) -> None:
    opened = open_backend(backend, Bundle(small_bundle.path))
    needs = opened.needs([0, 4])
    together = set_bytes(list(needs.values()), shared=opened.shares_weights)
    assert together > max(set_bytes([need], shared=opened.shares_weights) for need in needs.values())
    with Runtime.open(small_bundle.path, backend, memory_limit_bytes=together) as runtime:
        assert len(runtime.degrees) == 2
        assert runtime.stats()["estimated_bytes"] <= together


def test_changed_weights_are_refused(own_bundle: SmallBundle, backend: str) -> None:
    path = own_bundle.path / "weights.bin"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"weights\.bin has sha256"):
        Runtime.open(own_bundle.path, backend)


def test_a_model_that_cannot_be_loaded_is_told_in_one_line(tmp_path: Any, backend: str) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    opened = Bundle(bundle.path)
    proto = onnx.load(bundle.path / "degree-04.onnx", load_external_data=False)
    proto.graph.node.append(helper.make_node("NoSuchOperator", ["logits"], ["more"], domain="nowhere"))
    proto.graph.output[0].name = "more"
    opened.read_onnx = lambda degree: proto.SerializeToString()  # type: ignore[method-assign]
    loader = open_backend(backend, opened)
    with pytest.raises(EngineError, match=r"cannot load degree 4 .* 'tocom verify'") as caught:
        loader.load(4)
    assert "\n" not in str(caught.value)


def test_images_of_a_wrong_size_end_in_one_line_at_the_engine(small_bundle: SmallBundle, backend: str) -> None:
    engine = open_backend(backend, Bundle(small_bundle.path)).load(4)
    with pytest.raises(EngineError, match="failed at degree 4") as caught:
        engine.run(np.zeros((1, 3, SIZE, SIZE + 1), np.float32))
    assert "\n" not in str(caught.value)
    assert engine.run(images_of(1))["logits"].shape == (1, 5)


@pytest.mark.parametrize(("factor", "taken"), [(0.8, "openvino"), (1.25, "onnxruntime")])
def test_auto_takes_the_faster_one_once_both_were_measured(own_bundle: SmallBundle, factor: float, taken: str) -> None:
    """Each backend's own short profile, its latencies set: OpenVINO's are ``factor`` times ONNX Runtime's."""
    pytest.importorskip("openvino")
    for name, p50_ms in (("onnxruntime", 10.0), ("openvino", 10.0 * factor)):
        assert open_backend("auto", Bundle(own_bundle.path)).name == "onnxruntime"
        with Runtime.open(own_bundle.path, name) as runtime:
            assert runtime.profile is not None
            identity = identity_of(runtime.bundle, runtime.backend)
            latency = Latency(5, p50_ms, p50_ms, p50_ms, p50_ms)
            degrees = {degree: DegreeProfile(latency) for degree in runtime.profile.degrees}
            replace(runtime.profile, degrees=degrees, device=identity["device"]).save(own_bundle.path)
    opened = open_backend("auto", Bundle(own_bundle.path))
    assert opened.name == taken
    assert f"OpenVINO took {factor:.2f} of ONNX Runtime's time here, by their profiles: {taken} goes" in opened.reason
    assert "doubtful" not in opened.reason
    # Of other threads than were measured nothing is known.
    other = open_backend("auto", Bundle(own_bundle.path), threads=opened.threads + 1)
    assert (other.name, "OpenVINO took" in other.reason) == ("onnxruntime", False)


def test_a_profile_of_the_other_backend_is_no_warning(
    own_bundle: SmallBundle, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")
    with Runtime.open(own_bundle.path, "openvino") as runtime:
        assert runtime.profile is not None
        device = identity_of(runtime.bundle, runtime.backend)["device"]
        replace(runtime.profile, device=device).save(own_bundle.path)
    with Runtime.open(own_bundle.path, "onnxruntime"):
        assert "ignored a profile" not in caplog.text

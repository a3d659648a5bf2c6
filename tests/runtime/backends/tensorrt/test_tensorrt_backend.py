"""The TensorRT backend over the host's driver: answers, shared memory, errors; and on a real GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from foreign_images import ForeignLibrary, InterfaceImages
from host_cuda import OUT_OF_MEMORY, HostCuda
from scripted_engines import (
    CLASSES,
    DEGREES,
    SIZE,
    ScriptedTensorRt,
    engine_bytes,
    reference,
    replace_engine,
    write_engines,
)
from small_bundles import SmallBundle, images_of, put_references, write_small_bundle

from tocom.errors import EngineError, RequestError
from tocom.formats.bundle import Bundle
from tocom.runtime import Runtime
from tocom.runtime.backends import select
from tocom.runtime.backends.tensorrt.backend import TensorRtBackend
from tocom.runtime.backends.tensorrt.device.libcuda import LibcudaDevice


def test_every_degree_and_batch_answers_right_plainly_captured_and_replayed(
    bundle: SmallBundle, cuda: HostCuda, trt: ScriptedTensorRt
) -> None:
    write_engines(bundle)
    backend = TensorRtBackend(Bundle(bundle.path), name="tensorrt", trt=trt, device=LibcudaDevice(path=cuda.path))
    engines = {degree: backend.load(degree) for degree in DEGREES}
    for turn in range(4):
        for degree, engine in engines.items():
            for batch in (1, 3, 4):
                images = images_of(batch, seed=turn)
                np.testing.assert_allclose(engine.run(images)["logits"], reference(images, degree), rtol=1e-5)
    # One plain run and one capture per degree and batch, then launches alone.
    assert cuda.live("graphs") == 9
    assert cuda.calls("cuGraphLaunch") == 27
    assert cuda.calls("cuStreamBeginCapture_v2") == 9
    for engine in engines.values():
        engine.close()
        engine.close()
    backend.close()
    backend.close()
    assert cuda.is_clean()


def test_pixels_are_copied_as_eight_bits(tmp_path: Path, cuda: HostCuda, trt: ScriptedTensorRt) -> None:
    bundle = write_small_bundle(tmp_path / "pixels", input_type="uint8")
    write_engines(bundle, engines={degree: {"input": "uint8"} for degree in DEGREES})
    backend = TensorRtBackend(Bundle(bundle.path), name="tensorrt", trt=trt, device=LibcudaDevice(path=cuda.path))
    engine = backend.load(4)
    for turn in range(3):  # plainly, captured, and from the graph
        for batch in (1, 4):
            pixels = np.random.default_rng(turn).integers(0, 256, (batch, 3, SIZE, SIZE), np.uint8)
            expected = reference((pixels.astype(np.float32) / 255 - 0.5) / 0.5, 4)
            np.testing.assert_allclose(engine.run(pixels)["logits"], expected, rtol=1e-4, atol=1e-4)
    engine.close()
    backend.close()
    assert cuda.is_clean()


def test_one_arena_of_the_largest_need_serves_all_contexts(
    bundle: SmallBundle, cuda: HostCuda, trt: ScriptedTensorRt, opened: Callable[[], TensorRtBackend]
) -> None:
    write_engines(bundle)
    backend = opened()
    # Ascending, so that the arena grows and moves under engines that were bound and captured before.
    engines = {}
    for degree in DEGREES:
        engines[degree] = backend.load(degree)
        for other in engines:
            for _ in range(3):
                images = images_of(2, seed=other)
                np.testing.assert_allclose(engines[other].run(images)["logits"], reference(images, other), rtol=1e-5)
    assert {context.scratch for context in trt.contexts if context.executed} == {(backend._shared.arena.pointer, 9000)}
    per_engine = 4 * 4 * (3 * SIZE * SIZE + CLASSES)
    assert cuda.live("device") == 9000 + 3 * per_engine
    for engine in engines.values():
        engine.close()


def test_results_stay_when_the_next_request_runs(bundle: SmallBundle, opened: Callable[[], TensorRtBackend]) -> None:
    write_engines(bundle)
    engine = opened().load(0)
    first = engine.run(images_of(1, seed=1))["logits"]
    kept = first.copy()
    engine.run(images_of(1, seed=2))
    np.testing.assert_array_equal(first, kept)
    engine.close()


def test_no_capture_while_the_context_says_it_cannot(
    bundle: SmallBundle, cuda: HostCuda, trt: ScriptedTensorRt, opened: Callable[[], TensorRtBackend]
) -> None:
    write_engines(bundle)
    engine = opened().load(0)
    engine.run(images_of(1))
    trt.contexts[-1].capturable = False
    for _ in range(3):
        engine.run(images_of(1))
    assert cuda.live("graphs") == 0
    trt.contexts[-1].capturable = True
    engine.run(images_of(1))
    assert cuda.live("graphs") == 1
    engine.close()


def test_gpu_memory_of_others_is_read_in_place(
    bundle: SmallBundle, cuda: HostCuda, opened: Callable[[], TensorRtBackend]
) -> None:
    write_engines(bundle)
    backend = opened()
    engine = backend.load(4)
    for _ in range(3):
        engine.run(images_of(2))
    images = images_of(2, seed=5)
    library = ForeignLibrary(cuda)
    at, shifted = library.hold(images), library.hold(images, offset=64)
    copies, launches = cuda.calls("cuMemcpyHtoDAsync_v2"), cuda.calls("cuGraphLaunch")
    logits = engine.run(backend.adopt(InterfaceImages(at, images.shape)))["logits"]
    np.testing.assert_allclose(logits, reference(images, 4), rtol=1e-5)
    assert (cuda.calls("cuMemcpyHtoDAsync_v2"), cuda.calls("cuGraphLaunch")) == (copies, launches)
    assert cuda.calls("cuMemcpyDtoDAsync_v2") == 0
    # The next request from host memory finds its own buffer, and its graph, again.
    np.testing.assert_allclose(engine.run(images)["logits"], reference(images, 4), rtol=1e-5)
    assert cuda.calls("cuGraphLaunch") == launches + 1
    # TensorRT reads from multiples of 256 bytes alone: another begin is copied on the GPU.
    logits = engine.run(backend.adopt(InterfaceImages(shifted, images.shape)))["logits"]
    np.testing.assert_allclose(logits, reference(images, 4), rtol=1e-5)
    assert cuda.calls("cuMemcpyDtoDAsync_v2") == 1
    for interface, message in (({"typestr": "<f8"}, "must be float32"), ({"strides": (4, 8, 16, 32)}, "contiguous")):
        with pytest.raises(RequestError, match=message):
            backend.adopt(InterfaceImages(at, images.shape, **interface))
    engine.close()
    library.close()


def test_the_runtime_serves_from_engines_and_takes_gpu_images(
    bundle: SmallBundle, cuda: HostCuda, trt: ScriptedTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_engines(bundle)

    def opener(found: Bundle, threads: int | None, reason: str) -> TensorRtBackend:
        device = LibcudaDevice(path=cuda.path)
        return TensorRtBackend(found, name="tensorrt", reason=reason, trt=trt, device=device)

    monkeypatch.setitem(select._OPENERS, "tensorrt", opener)
    with Runtime.open(bundle.path) as runtime:
        assert (runtime.backend.name, runtime.degrees) == ("tensorrt", DEGREES)
        assert runtime.profile is not None
        assert runtime.profile.device["gpu"] == "Host GPU 0"
        images = images_of(3)
        result = runtime.infer(images, budget_ms=1000.0)
        np.testing.assert_allclose(result.outputs["logits"], reference(images, result.degree), rtol=1e-5)
        library = ForeignLibrary(cuda)
        at = library.hold(images)
        result = runtime.infer(InterfaceImages(at, images.shape), degree=8)  # type: ignore[arg-type]
        np.testing.assert_allclose(result.outputs["logits"], reference(images, 8), rtol=1e-5)
        with pytest.raises(RequestError, match=r"must have the shape \[batch, 3, 8, 8\]"):
            runtime.infer(InterfaceImages(at, images[:, :2].shape))  # type: ignore[arg-type]
        library.close()
    assert cuda.is_clean()


@pytest.mark.fault(
    "an engine that TensorRT does not deserialize, under `auto`",
    outcome="the next backend serves; its reason and the log say why",
)
def test_auto_goes_on_where_an_engine_does_not_load(
    bundle: SmallBundle, cuda: HostCuda, trt: ScriptedTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_engines(bundle)
    words = "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed. Version tag does not match"
    replace_engine(folder, 8, engine_bytes(8, error=words))

    def opener(found: Bundle, threads: int | None, reason: str) -> TensorRtBackend:
        device = LibcudaDevice(path=cuda.path)
        return TensorRtBackend(found, name="tensorrt", reason=reason, trt=trt, device=device)

    monkeypatch.setitem(select._OPENERS, "tensorrt", opener)
    # The scripted engines' answers are others than the ONNX files'.
    with Runtime.open(bundle.path, check_answers=False) as runtime:
        assert runtime.backend.name == "onnxruntime"
        assert "Not tensorrt: tensorrt 10.13.2 cannot load" in runtime.backend.reason
        assert "Version tag does not match" in runtime.backend.reason
    assert cuda.leaks() == {}
    with pytest.raises(EngineError, match=r"cannot load .*Version tag does not match\. Build it again"):
        Runtime.open(bundle.path, "tensorrt")
    assert cuda.leaks() == {}


@pytest.mark.fault(
    "a GPU whose engines all answer wrongly, under `auto`",
    outcome="the next backend serves; its reason and the log say why; asked for by name, EngineError",
)
def test_auto_goes_on_where_every_engine_answers_wrongly(
    bundle: SmallBundle,
    cuda: HostCuda,
    trt: ScriptedTensorRt,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_engines(bundle, engines={degree: {"wrong": "zeros"} for degree in DEGREES})
    put_references(bundle.path, bundle.reference)  # what the ONNX files compute

    def opener(found: Bundle, threads: int | None, reason: str) -> TensorRtBackend:
        device = LibcudaDevice(path=cuda.path)
        return TensorRtBackend(found, name="tensorrt", reason=reason, trt=trt, device=device)

    monkeypatch.setitem(select._OPENERS, "tensorrt", opener)
    with Runtime.open(bundle.path) as runtime:
        assert runtime.backend.name == "onnxruntime"
        assert runtime.degrees == DEGREES
        assert "Not tensorrt: tensorrt 10.13.2 answers wrongly at every degree" in runtime.backend.reason
        assert all(found["right"] for found in runtime.stats()["answers_checked"].values())
        logits = runtime.infer(images_of(2), degree=4).outputs["logits"]
        np.testing.assert_allclose(logits, bundle.reference(images_of(2), 4), atol=1e-4)
    assert any("tensorrt is passed over" in record.message for record in caplog.records)
    assert cuda.leaks() == {}
    with pytest.raises(EngineError, match=r"tensorrt 10\.13\.2 answers wrongly at every degree"):
        Runtime.open(bundle.path, "tensorrt")
    assert cuda.leaks() == {}


@pytest.mark.fault(
    "a driver older than TensorRT's CUDA", outcome="EngineError with TensorRT's words, and what to update"
)
def test_a_driver_older_than_the_library_is_told(bundle: SmallBundle, opened: Callable[[], TensorRtBackend]) -> None:
    folder = write_engines(bundle)
    words = "Cuda Runtime (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)"
    replace_engine(folder, 0, engine_bytes(0, error=words))
    with pytest.raises(
        EngineError, match=r"cudaError 35.*driver is older than the CUDA that this library was made for"
    ):
        opened().load(0)


@pytest.mark.parametrize("symbol", ["cuDevicePrimaryCtxRetain", "cuEventCreate", "cuStreamCreate"])
@pytest.mark.fault("no GPU memory left to start with", outcome="EngineError in one line; `auto` takes the next backend")
def test_a_gpu_without_room_to_start_is_told(
    bundle: SmallBundle, cuda: HostCuda, trt: ScriptedTensorRt, monkeypatch: pytest.MonkeyPatch, symbol: str
) -> None:
    write_engines(bundle)
    monkeypatch.setattr(LibcudaDevice.__init__, "__defaults__", (0, cuda.path))
    cuda.fail_next(symbol, OUT_OF_MEMORY)
    with pytest.raises(EngineError, match=rf"tensorrt has no room to start: {symbol} failed: out of memory"):
        TensorRtBackend(Bundle(bundle.path), name="tensorrt", trt=trt)
    assert cuda.is_clean()


def test_auto_falls_back_and_says_why(bundle: SmallBundle) -> None:
    write_engines(bundle)
    put_references(bundle.path, bundle.reference)
    with Runtime.open(bundle.path) as runtime:
        assert runtime.backend.name == "onnxruntime"
        assert "Not tensorrt: " in runtime.backend.reason


def test_what_tensorrt_logs_goes_into_the_error(bundle: SmallBundle, opened: Callable[[], TensorRtBackend]) -> None:
    folder = write_engines(bundle)
    replace_engine(folder, 0, b"no engine")
    replace_engine(folder, 4, engine_bytes(4, no_context="context refused"))
    replace_engine(folder, 8, engine_bytes(8, refuses=True))
    backend = opened()
    with pytest.raises(EngineError, match="Size specified in header does not match actual size"):
        backend.load(0)
    with pytest.raises(EngineError, match="makes no context for degree 4: context refused"):
        backend.load(4)
    for changes in ({"error": "[E] Error Code 2: OutOfMemory (out of memory)"}, {"no_context": "Cuda: out of memory"}):
        replace_engine(folder, 4, engine_bytes(4, **changes))
        with pytest.raises(MemoryError, match=r"degree.*4.*: .*out of memory"):
            opened().load(4)
    engine = backend.load(8)
    for _ in range(2):
        with pytest.raises(EngineError, match="refused execute_async_v3 at degree 8: enqueue refused"):
            engine.run(images_of(1))
    engine.close()


@pytest.mark.parametrize(
    "at", ["cuStreamBeginCapture_v2", "enqueue", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"]
)
@pytest.mark.fault(
    "a CUDA graph that cannot be captured", outcome="right answers by plain launches from then on; one line in the log"
)
def test_a_failed_capture_falls_back_to_plain_launches(
    bundle: SmallBundle,
    cuda: HostCuda,
    opened: Callable[[], TensorRtBackend],
    caplog: pytest.LogCaptureFixture,
    at: str,
) -> None:
    folder = write_engines(bundle)
    if at == "enqueue":
        replace_engine(folder, 0, engine_bytes(0, allocates=True))
    else:
        cuda.fail_next(at, OUT_OF_MEMORY)
    engine = opened().load(0)
    for turn, batch in enumerate((1, 1, 3, 3, 1, 3)):
        images = images_of(batch, seed=turn)
        np.testing.assert_allclose(engine.run(images)["logits"], reference(images, 0), rtol=1e-5)
    assert cuda.live("graphs") == cuda.live("plain graphs") == cuda.calls("cuGraphLaunch") == 0
    said = [record.getMessage() for record in caplog.records if "without CUDA graphs" in record.getMessage()]
    assert len(said) == 1
    engine.close()


@pytest.mark.fault(
    "out of GPU memory at the nth engine", outcome="that degree is left out; what it had taken is given back"
)
def test_out_of_device_memory_is_a_memory_error_and_leaves_nothing(bundle: SmallBundle) -> None:
    write_engines(bundle)
    cuda = HostCuda(memory=9000 + 4 * 4 * (3 * SIZE * SIZE + CLASSES) + 100)
    trt = ScriptedTensorRt(cuda)
    backend = TensorRtBackend(Bundle(bundle.path), name="tensorrt", trt=trt, device=LibcudaDevice(path=cuda.path))
    engine = backend.load(8)
    used = cuda.live("device")
    with pytest.raises(MemoryError, match="cuMemAlloc failed: out of memory"):
        backend.load(0)
    assert cuda.live("device") == used
    images = images_of(1)
    np.testing.assert_allclose(engine.run(images)["logits"], reference(images, 8), rtol=1e-5)
    engine.close()
    backend.close()
    assert cuda.is_clean()


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_real_engines_answer_like_onnxruntime(tmp_path: Path, backend: str) -> None:
    from tocom.export.engines.builder import build

    bundle = write_small_bundle(tmp_path / "bundle", width=256)
    try:
        build(bundle.path, backend=backend)
    except EngineError as error:
        pytest.skip(str(error))
    with Runtime.open(bundle.path, backend) as runtime:
        assert runtime.degrees == DEGREES
        for turn in range(3):
            for degree in DEGREES:
                for batch in (1, 4):
                    images = images_of(batch, seed=turn)
                    logits = runtime.infer(images, degree=degree).outputs["logits"]
                    # TensorRT may use TF32 for float32 products: 10 bits of mantissa over sums of 256 terms.
                    np.testing.assert_allclose(logits, bundle.reference(images, degree), atol=5e-2)

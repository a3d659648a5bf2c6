"""The TensorRT backend's logic and the device contract, over scripted drivers at the lowest seam."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_cuda import OUT_OF_MEMORY, HostCuda
from scripted_engines import (
    CLASSES,
    DEGREES,
    SIZE,
    IPluginRegistry,
    ScriptedTensorRt,
    engine_bytes,
    reference,
    write_engines,
)
from small_bundles import SmallBundle, images_of, put_references, write_small_bundle

from tocom.errors import EngineError, RequestError
from tocom.formats.bundle import Bundle
from tocom.formats.engine import SELF_REGISTER
from tocom.runtime import Runtime
from tocom.runtime.backends import select
from tocom.runtime.backends.tensorrt.backend import TensorRtBackend
from tocom.runtime.backends.tensorrt.device.base import Device
from tocom.runtime.backends.tensorrt.device.libcuda import LibcudaDevice


def replace_engine(folder: Path, degree: int, content: bytes) -> None:
    (folder / f"degree-{degree:02d}.engine").write_bytes(content)
    sidecar = folder / f"degree-{degree:02d}.json"
    record = json.loads(sidecar.read_text())
    record["engine"] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    sidecar.write_text(json.dumps(record))


@pytest.fixture
def cuda() -> HostCuda:
    return HostCuda()


@pytest.fixture
def trt(cuda: HostCuda) -> ScriptedTensorRt:
    return ScriptedTensorRt(cuda)


@pytest.fixture
def bundle(tmp_path: Path) -> SmallBundle:
    return write_small_bundle(tmp_path / "bundle")


@pytest.fixture
def opened(bundle: SmallBundle, trt: ScriptedTensorRt) -> Iterator[Callable[[], TensorRtBackend]]:
    backends = []

    def make() -> TensorRtBackend:
        device = LibcudaDevice(path=trt.cuda.path)
        backends.append(TensorRtBackend(Bundle(bundle.path), name="tensorrt", trt=trt, device=device))
        return backends[-1]

    yield make
    for backend in backends:
        backend.close()


def nothing_is_left(cuda: HostCuda) -> bool:
    return cuda.notes() == "" and cuda.leaks() == {}


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
    assert nothing_is_left(cuda)


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


class OnGpu:
    """An array of another library in GPU memory, ``offset`` bytes into its block, by ``__cuda_array_interface__``."""

    def __init__(self, device: Device, cuda: HostCuda, images: np.ndarray, offset: int = 0, **interface: Any) -> None:
        with device.attached():
            self.memory = device.allocate(images.nbytes + offset)
        self.pointer, self.device = self.memory + offset, device
        cuda.write(self.pointer, images)
        self.shape = images.shape
        self.__cuda_array_interface__ = {
            "shape": images.shape,
            "typestr": "<f4",
            "data": (self.pointer, True),
            "version": 3,
            "strides": None,
            "stream": None,
            **interface,
        }

    def free(self) -> None:
        with self.device.attached():
            self.device.release(self.memory)


def test_gpu_memory_of_others_is_read_in_place(
    bundle: SmallBundle, cuda: HostCuda, opened: Callable[[], TensorRtBackend]
) -> None:
    write_engines(bundle)
    backend = opened()
    engine = backend.load(4)
    for _ in range(3):
        engine.run(images_of(2))
    images = images_of(2, seed=5)
    foreign = OnGpu(backend._device, cuda, images)
    copies, launches = cuda.calls("cuMemcpyHtoDAsync_v2"), cuda.calls("cuGraphLaunch")
    logits = engine.run(backend.adopt(foreign))["logits"]
    np.testing.assert_allclose(logits, reference(images, 4), rtol=1e-5)
    assert (cuda.calls("cuMemcpyHtoDAsync_v2"), cuda.calls("cuGraphLaunch")) == (copies, launches)
    assert cuda.calls("cuMemcpyDtoDAsync_v2") == 0
    # The next request from host memory finds its own buffer, and its graph, again.
    np.testing.assert_allclose(engine.run(images)["logits"], reference(images, 4), rtol=1e-5)
    assert cuda.calls("cuGraphLaunch") == launches + 1
    # TensorRT reads from multiples of 256 bytes alone: another begin is copied on the GPU.
    shifted = OnGpu(backend._device, cuda, images, offset=64)
    np.testing.assert_allclose(engine.run(backend.adopt(shifted))["logits"], reference(images, 4), rtol=1e-5)
    assert cuda.calls("cuMemcpyDtoDAsync_v2") == 1
    for interface, message in (({"typestr": "<f8"}, "must be float32"), ({"strides": (4, 8, 16, 32)}, "contiguous")):
        foreign.__cuda_array_interface__ = {**shifted.__cuda_array_interface__, **interface}
        with pytest.raises(RequestError, match=message):
            backend.adopt(foreign)
    for held in (foreign, shifted):
        held.free()
    engine.close()


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
        device = runtime.backend._device  # type: ignore[attr-defined]
        foreign, narrow = OnGpu(device, cuda, images), OnGpu(device, cuda, images[:, :2])
        result = runtime.infer(foreign, degree=8)  # type: ignore[arg-type]
        np.testing.assert_allclose(result.outputs["logits"], reference(images, 8), rtol=1e-5)
        with pytest.raises(RequestError, match=r"must have the shape \[batch, 3, 8, 8\]"):
            runtime.infer(narrow)  # type: ignore[arg-type]
        foreign.free()
        narrow.free()
    assert nothing_is_left(cuda)


def test_a_version_compatible_engine_of_an_older_release_is_taken(
    bundle: SmallBundle, opened: Callable[[], TensorRtBackend]
) -> None:
    options = {"version_compatible": True, "hardware_compatible": False}
    write_engines(bundle, "tensorrt-10.3.0-x", backend_version="10.3.0", options=options)
    assert opened()._folder.path.name == "tensorrt-10.3.0-x"


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


def test_auto_falls_back_and_says_why(bundle: SmallBundle) -> None:
    write_engines(bundle)
    put_references(bundle.path, bundle.reference)
    with Runtime.open(bundle.path) as runtime:
        assert runtime.backend.name == "onnxruntime"
        assert "Not tensorrt: " in runtime.backend.reason


@pytest.mark.parametrize(
    ("folder", "changes", "message"),
    [
        ("tensorrt-10.3.0-x", {"backend_version": "10.3.0"}, r"built by tensorrt 10\.3\.0, this is 10\.13\.2"),
        (
            "tensorrt-10.13.2-x",
            {"device": {"name": "y", "compute_capability": "8.9"}},
            r"built for compute capability 8\.9, this GPU has 8\.7",
        ),
        ("tensorrt-10.13.2-x", {"onnx": {"sha256": "0" * 64, "weights_sha256": "0" * 64}}, "from another ONNX file"),
        ("tensorrt-10.13.2-x", {"engine": {"size_bytes": 3}}, "sidecar is not readable"),
        (
            "tensorrt-11.0.0-x",
            {"backend_version": "11.0.0", "options": {"version_compatible": True}},
            r"version-compatible, which holds within tensorrt 11\.x; this is 10\.13\.2",
        ),
        (
            "tensorrt-10.14.0-x",
            {"backend_version": "10.14.0", "options": {"version_compatible": True}},
            r"version-compatible with tensorrt 10\.14\.0 and newer; this is 10\.13\.2",
        ),
        (
            "tensorrt-10.13.2-x",
            {"op_plugin": {"sha256": "0" * 64, "file": "libop.so", "tensorrt": "11.0.0"}},
            r"its op plugin library is for TensorRT 11\.x, this is 10\.13\.2",
        ),
        ("tensorrt-10.13.2-x", {"degree": 5}, "the bundle has no degree 5"),
        (
            "tensorrt-10.13.2-portable",
            {"device": "portable", "compute_capabilities": ["8.6", "12.0"]},
            r"it is portable, for compute capability 8\.6, 12\.0; this GPU has 8\.7",
        ),
        ("tensorrt-rtx-1.7.1-portable", {}, "has no tensorrt engines"),
    ],
)
@pytest.mark.fault(
    "an engine for another device, TensorRT or bundle",
    outcome="EngineError that names what differs and the command to build",
)
def test_engines_that_do_not_fit_are_named_with_the_reason(
    bundle: SmallBundle,
    opened: Callable[[], TensorRtBackend],
    folder: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    write_engines(bundle, folder, **changes)
    with pytest.raises(EngineError, match=message) as caught:
        opened()
    assert "tocom build" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_portable_engines_serve_where_none_was_built_for_the_gpu(
    bundle: SmallBundle, opened: Callable[[], TensorRtBackend]
) -> None:
    write_engines(bundle, "tensorrt-10.13.2-portable", device="portable")
    assert opened()._folder.path.name.endswith("portable")
    write_engines(bundle)
    assert opened()._folder.path.name.endswith("sm87")


def test_a_missing_degree_names_the_command(bundle: SmallBundle, opened: Callable[[], TensorRtBackend]) -> None:
    folder = write_engines(bundle)
    (folder / "degree-04.json").unlink()
    with pytest.raises(
        EngineError, match=r"no engine of degree 4; it has \[0, 8\]\. Build it: tocom build .*--degrees 4"
    ):
        opened().prepare(DEGREES)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
@pytest.mark.fault("an engine that is flipped, cut or gone", outcome="EngineError; TensorRT never sees a byte of it")
def test_a_damaged_engine_is_never_deserialized(
    bundle: SmallBundle, opened: Callable[[], TensorRtBackend], damage: str
) -> None:
    path = write_engines(bundle) / "degree-04.engine"
    content = path.read_bytes()
    backend = opened()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if damage == "cut" else content.replace(b"4", b"5", 1))
    message = {"flip": "has sha256 .* is not loaded", "cut": "bytes, its sidecar says", "gone": "cannot be read"}
    with pytest.raises(EngineError, match=message[damage]):
        backend.load(4)


def test_compact_engines_answer_as_plain_ones(bundle: SmallBundle, opened: Callable[[], TensorRtBackend]) -> None:
    folder = write_engines(bundle, options={"compact": True, "version_compatible": False})
    assert (folder / "degree-04.engine.zip").exists()
    engine = opened().load(4)
    images = images_of(2)
    np.testing.assert_allclose(engine.run(images)["logits"], reference(images, 4), rtol=1e-5)
    engine.close()


def test_what_tensorrt_logs_goes_into_the_error(bundle: SmallBundle, opened: Callable[[], TensorRtBackend]) -> None:
    folder = write_engines(bundle)
    replace_engine(folder, 0, b"no engine")
    replace_engine(folder, 4, engine_bytes(4, no_context=True))
    replace_engine(folder, 8, engine_bytes(8, refuses=True))
    backend = opened()
    with pytest.raises(EngineError, match="Size specified in header does not match actual size"):
        backend.load(0)
    with pytest.raises(EngineError, match="makes no context for degree 4: context refused"):
        backend.load(4)
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
    assert nothing_is_left(cuda)


@pytest.mark.fault(
    "the op plugin missing, or another than the engines were built with",
    outcome="EngineError that names the library; it is not loaded",
)
def test_the_op_plugin_library_is_checked_then_loaded(
    bundle: SmallBundle, trt: ScriptedTensorRt, opened: Callable[[], TensorRtBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SELF_REGISTER, "1")  # meant for other programs: TensorRT would refuse the library
    content = b"a library"
    op_plugin = {"sha256": hashlib.sha256(content).hexdigest(), "file": "libop.so", "tensorrt": "10.13.2"}
    folder = write_engines(bundle, op_plugin=op_plugin)
    with pytest.raises(EngineError, match=r"need the op plugin library .*libop\.so, which cannot be read"):
        opened()
    (folder / "libop.so").write_bytes(b"another library")
    with pytest.raises(EngineError, match="It is not loaded"):
        opened()
    assert not any(registry.libraries for registry in trt.registries)
    (folder / "libop.so").write_bytes(content)
    # Each runtime has a registry of its own: the process's takes an op only once, and answers None after.
    opened()
    opened()
    assert [registry.libraries for registry in trt.registries[-2:]] == [[content], [content]]
    assert SELF_REGISTER not in os.environ


@pytest.mark.fault(
    "the op plugin library exchanged or rewritten between its hash and its loading",
    outcome="the bytes that were hashed are loaded, and no others",
)
@pytest.mark.parametrize("rewrite", [True, False])
def test_an_exchange_after_the_hash_loads_nothing_else(
    bundle: SmallBundle, opened: Callable[[], TensorRtBackend], rewrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a real dynamic loader, at the very moment when TensorRT is handed the path."""
    content, hostile = (compiled(bundle.path.parent, answer) for answer in (42, 666))
    op_plugin = {"sha256": hashlib.sha256(content).hexdigest(), "file": "libop.so", "tensorrt": "10.13.2"}
    library = write_engines(bundle, op_plugin=op_plugin) / "libop.so"
    library.write_bytes(content)
    answers = []

    def exchanged(registry: IPluginRegistry, path: str) -> Any:
        if not rewrite:
            library.unlink()
        library.write_bytes(hostile)
        with pytest.raises(PermissionError):
            Path(path).write_bytes(hostile)  # the copy is sealed
        loaded = ctypes.CDLL(path)
        answers.append(loaded.answer())
        return loaded

    monkeypatch.setattr(IPluginRegistry, "load_library", exchanged)
    opened()
    assert answers == [42]
    with pytest.raises(EngineError, match="It is not loaded"):
        opened()


def compiled(folder: Path, answer: int) -> bytes:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    out = folder / f"{answer}.so"
    source = f"int answer(void) {{ return {answer}; }}"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(out)], input=source.encode(), check=True)
    return out.read_bytes()


def test_needs_are_known_before_loading(
    bundle: SmallBundle, cuda: HostCuda, opened: Callable[[], TensorRtBackend]
) -> None:
    write_engines(bundle)
    backend = opened()
    before = cuda.live("device")
    needs = backend.needs(DEGREES)
    assert cuda.live("device") == before
    assert {degree: need.weight_bytes for degree, need in needs.items()} == {d: len(engine_bytes(d)) for d in DEGREES}


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

"""CUDA graphs by NVIDIA's rules and images of other libraries, on the host's driver, where a missing wait shows."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from foreign_images import DlpackImages, ForeignLibrary, InterfaceImages
from host_cuda import OUT_OF_MEMORY, HostCuda
from scripted_engines import DEGREES, ScriptedTensorRt, reference, write_engines
from scripted_pycuda import scripted_pycuda
from small_bundles import SmallBundle, images_of, write_small_bundle

from tocom.errors import RequestError
from tocom.formats.bundle import Bundle
from tocom.runtime import Runtime
from tocom.runtime.backends import select
from tocom.runtime.backends.arrays import LEGACY_STREAM
from tocom.runtime.backends.tensorrt.backend import TensorRtBackend
from tocom.runtime.backends.tensorrt.device.libcuda import LibcudaDevice
from tocom.runtime.backends.tensorrt.device.pycuda import PycudaDevice
from tocom.runtime.backends.tensorrt.device.select import Device


@pytest.fixture
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SmallBundle:
    bundle = write_small_bundle(tmp_path_factory.mktemp("engines") / "bundle")
    write_engines(bundle)
    return bundle


@pytest.fixture(params=["libcuda", "pycuda"])
def device(request: pytest.FixtureRequest, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> Device:
    if request.param == "libcuda":
        return LibcudaDevice(path=cuda.path)
    module = ModuleType("pycuda.driver")
    module.__dict__.update(vars(scripted_pycuda(cuda)))
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", module)
    return PycudaDevice()


@pytest.fixture
def backend(bundle: SmallBundle, cuda: HostCuda, device: Device) -> Iterator[TensorRtBackend]:
    backend = TensorRtBackend(Bundle(bundle.path), name="tensorrt", trt=ScriptedTensorRt(cuda), device=device)
    yield backend
    backend.close()
    assert cuda.notes() == ""
    assert cuda.leaks() == ({"contexts": 1} if device.library == "pycuda" else {})


def answers(engine: Any, images: Any, expected: np.ndarray, degree: int = 4) -> None:
    np.testing.assert_allclose(engine.run(images)["logits"], reference(expected, degree), rtol=1e-5)


def test_two_batch_sizes_in_turn_keep_their_graphs(backend: TensorRtBackend, cuda: HostCuda) -> None:
    engine = backend.load(4)
    captured = int(backend._device.captures)
    for turn, batch in enumerate((1, 3, 1, 3, 1, 3, 1, 3)):
        images = images_of(batch, seed=turn)
        answers(engine, images, images)
    # Each size: one plain run, one capture, then launches; no size's graph is thrown away by the other.
    assert cuda.live("graphs") == cuda.calls("cuStreamBeginCapture_v2") == 2 * captured
    assert cuda.calls("cuGraphLaunch") == 6 * captured
    engine.close()
    assert cuda.live("graphs") == 0


def test_a_batch_beyond_the_kept_graphs_runs_plainly(
    backend: TensorRtBackend, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocom.runtime.backends.tensorrt.engine._MAX_GRAPHS", 2)
    engine = backend.load(4)
    for turn, batch in enumerate((1, 2, 3, 1, 2, 3, 1, 2, 3, 4)):
        images = images_of(batch, seed=turn)
        answers(engine, images, images)
    assert all(engine.is_settled(batch) for batch in (1, 2, 3, 4))
    assert cuda.live("graphs") == 2 * int(backend._device.captures)
    engine.close()


def test_an_arena_that_moves_is_captured_anew(backend: TensorRtBackend, cuda: HostCuda) -> None:
    small = backend.load(0)
    for turn in range(3):
        images = images_of(1, seed=turn)
        answers(small, images, images, degree=0)
    large = backend.load(8)  # needs more scratch memory: the arena moves
    for turn in range(3):
        images = images_of(1, seed=turn)
        answers(small, images, images, degree=0)
        answers(large, images, images, degree=8)
    assert cuda.calls("cuStreamBeginCapture_v2") == 3 * int(backend._device.captures)
    small.close()
    large.close()


Make = Callable[[ForeignLibrary, int, tuple[int, ...]], Any]

BUSY: dict[str, tuple[Make, bool]] = {
    "DLPack": (DlpackImages, False),
    "interface with a stream": (lambda lib, at, shape: InterfaceImages(at, shape, stream=lib.stream), False),
    "interface that says none": (lambda lib, at, shape: InterfaceImages(at, shape), True),
    "interface of version 2": (lambda lib, at, shape: InterfaceImages(at, shape, version=2, stream=lib.stream), True),
}


@pytest.mark.parametrize("kind", BUSY)
@pytest.mark.parametrize("offset", [0, 64])
@pytest.mark.fault(
    "GPU images that another library's stream is still writing", outcome="waited for on the device; the right answer"
)
def test_images_that_are_still_being_written_are_waited_for(
    backend: TensorRtBackend, cuda: HostCuda, kind: str, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, legacy = BUSY[kind]
    library = ForeignLibrary(cuda)
    engine = backend.load(4)
    for turn in range(3):
        old, new = images_of(2, seed=90), images_of(2, seed=turn)
        pointer = library.hold(old, offset)
        library.write_later(pointer, new, LEGACY_STREAM if legacy else library.stream)
        answers(engine, backend.adopt(make(library, pointer, new.shape)), new)
        images = images_of(2, seed=50 + turn)
        answers(engine, images, images)
    # The test can fail: without waiting the old images are read.
    monkeypatch.setattr(backend._device, "wait_for", lambda stream, producer: None)
    pointer = library.hold(old, offset)
    library.write_later(pointer, new, LEGACY_STREAM if legacy else library.stream)
    answers(engine, backend.adopt(make(library, pointer, new.shape)), old)
    monkeypatch.undo()
    with library.device.attached():
        library.device.synchronize(LEGACY_STREAM)
    engine.close()
    library.close()


def test_adopting_while_another_thread_captures_disturbs_neither(
    backend: TensorRtBackend, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer lets a stream wait for it; on the stream that is recorded that would spoil the recording."""
    library = ForeignLibrary(cuda)
    engine = backend.load(4)
    images = images_of(2, seed=3)
    pointer = library.hold(images)
    adopted = []
    begin = backend._device.begin_capture

    def begin_and_adopt(stream: int) -> None:
        begin(stream)
        thread = threading.Thread(
            target=lambda: adopted.append(backend.adopt(DlpackImages(library, pointer, images.shape)))
        )
        thread.start()
        thread.join()

    monkeypatch.setattr(backend._device, "begin_capture", begin_and_adopt)
    for turn in range(4):
        other = images_of(1, seed=turn)
        answers(engine, other, other)
    assert cuda.live("graphs") == len(adopted) == int(backend._device.captures)
    answers(engine, backend.adopt(DlpackImages(library, pointer, images.shape)), images)
    engine.close()
    library.close()


def test_a_tensor_that_its_library_keeps_is_refused(backend: TensorRtBackend) -> None:
    class Grown:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, *, stream: int) -> Any:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    with pytest.raises(RequestError, match=r"cannot be taken from its library: .* use tensor\.detach\(\)"):
        backend.adopt(Grown())


# Of device memory: the arena; then, once that has grown, the input's buffer and the output's.
@pytest.mark.parametrize(("symbol", "passing"), [("cuMemAlloc_v2", (0, 1, 0, 1)), ("cuMemHostAlloc", (0, 1))])
@pytest.mark.fault(
    "out of GPU or page-locked memory at any allocation of an engine",
    outcome="MemoryError; nothing of it is kept, and the engines that are loaded answer on",
)
def test_every_allocation_of_an_engine_may_fail(
    backend: TensorRtBackend, cuda: HostCuda, symbol: str, passing: tuple[int, ...]
) -> None:
    kept = backend.load(0)
    before = {what: cuda.live(what) for what in ("device", "pinned")}
    for turn, after in enumerate(passing):
        cuda.fail_next(symbol, OUT_OF_MEMORY, after=after, times=9)
        with pytest.raises(MemoryError, match="out of memory"):
            backend.load(8)
        cuda.fail_next(symbol, OUT_OF_MEMORY, times=0)
        assert cuda.live("pinned") == before["pinned"]
        assert cuda.live("device") - before["device"] in (0, 8000), "the arena alone may have grown"
        images = images_of(1, seed=turn)
        answers(kept, images, images, degree=0)
    kept.close()


@pytest.mark.fault("a reload while requests are served on a GPU", outcome="every answer right; the GPU gets all back")
def test_a_reload_while_serving(bundle: SmallBundle, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def opener(found: Bundle, threads: int | None, reason: str) -> TensorRtBackend:
        device = LibcudaDevice(path=cuda.path)
        return TensorRtBackend(found, name="tensorrt", reason=reason, trt=ScriptedTensorRt(cuda), device=device)

    monkeypatch.setitem(select._OPENERS, "tensorrt", opener)
    failed: list[BaseException] = []
    done = threading.Event()
    with Runtime.open(bundle.path, "tensorrt") as runtime:

        def serve(thread: int) -> None:
            try:
                turn = 0
                while not done.is_set() or turn < 4:
                    turn += 1
                    images, degree = images_of(1 + turn % 3, seed=100 * thread + turn), DEGREES[turn % 3]
                    logits = runtime.infer(images, degree=degree).outputs["logits"]
                    np.testing.assert_allclose(logits, reference(images, degree), rtol=1e-5)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=serve, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            runtime.reload()
        done.set()
        for thread in threads:
            thread.join()
    assert not failed, failed[0]
    assert cuda.calls("cuGraphLaunch") > 0
    assert cuda.notes() == ""
    assert cuda.leaks() == {}

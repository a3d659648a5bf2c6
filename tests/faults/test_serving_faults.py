"""A backend that hangs, lies, raises or is lost while it serves; clocks; reloads; many threads."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from host_cuda import HostCuda
from PIL import Image
from scripted_engines import ScriptedTensorRt, write_engines
from scripted_engines import reference as scripted_reference
from small_bundles import SmallBundle, images_of, write_small_bundle
from typer.testing import CliRunner

from tocom.cli import add_verbs
from tocom.errors import BundleError, EngineError, RequestError
from tocom.formats.bundle import Bundle
from tocom.runtime import Runtime
from tocom.runtime.backends import select
from tocom.runtime.backends.tensorrt.backend import TensorRtBackend
from tocom.runtime.backends.tensorrt.device.libcuda import LibcudaDevice

LIMIT_S = 0.3


def break_engines(runtime: Runtime, fault: Callable[[np.ndarray], Any]) -> Callable[[], None]:
    """Replace every engine's own ``run`` by ``fault``; return what undoes it."""
    engines = [getattr(engine, "_engine", engine) for engine in runtime._active.engines.values()]
    for engine in engines:
        engine.run = fault

    def mend() -> None:
        for engine in engines:
            del engine.run

    return mend


def check(runtime: Runtime, bundle: SmallBundle, seed: int = 0) -> None:
    images = images_of(1, seed=seed)
    result = runtime.infer(images)
    np.testing.assert_allclose(result.outputs["logits"], bundle.reference(images, result.degree), atol=1e-4)


def answers(runtime: Runtime) -> bool:
    try:
        runtime.infer(images_of(1))
    except EngineError:
        return False
    return True


class Silence:
    """An inference that does not return until it may."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        assert self.over.wait(60)
        return {"logits": np.zeros((len(images), 5), np.float32)}


@pytest.mark.fault(
    "a backend that hangs",
    outcome="EngineError after `timeout_s`, further requests at once; right answers again when it returns",
)
def test_a_silent_device_is_given_up_and_serves_when_it_returns(bundle: SmallBundle) -> None:
    with Runtime.open(bundle.path, timeout_s=LIMIT_S) as runtime:
        check(runtime, bundle)
        silence = Silence()
        mend = break_engines(runtime, silence)
        begin = time.monotonic()
        with pytest.raises(EngineError, match=r"did not answer within 0\.3 s, in degree 0") as caught:
            runtime.infer(images_of(1))
        assert LIMIT_S <= time.monotonic() - begin < 20
        assert "\n" not in str(caught.value)
        begin = time.monotonic()
        with pytest.raises(EngineError, match="has been silent for"):
            runtime.infer(images_of(1))
        with pytest.raises(EngineError, match="has been silent for"):
            runtime.submit(images_of(1)).result(timeout=30)
        assert time.monotonic() - begin < LIMIT_S + 20
        assert runtime.stats()["failures"] == 3
        mend()
        silence.over.set()
        until = time.monotonic() + 30
        while not answers(runtime) and time.monotonic() < until:
            time.sleep(0.01)
        # The late answer, all zeros, was dropped: this one is of its own images.
        check(runtime, bundle, seed=3)


@pytest.mark.parametrize("verb", ["run", "bench"])
@pytest.mark.fault("a backend that hangs under `tocom run` or `tocom bench`", outcome="EngineError after `--timeout-s`")
def test_a_silent_device_ends_a_command(
    bundle: SmallBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
    silence = Silence()
    opened = Runtime.open

    def open_then_hang(*arguments: Any, **options: Any) -> Runtime:
        runtime = opened(*arguments, **options)
        break_engines(runtime, silence)
        return runtime

    monkeypatch.setattr(Runtime, "open", open_then_hang)
    app = typer.Typer()
    add_verbs(app, verb)
    app.command("other")(lambda: None)  # with one command alone, typer takes its name for an argument
    images = ["--images", str(tmp_path)] if verb == "run" else []
    done = CliRunner().invoke(app, [verb, str(bundle.path), *images, "--timeout-s", str(LIMIT_S)])
    silence.over.set()
    assert isinstance(done.exception, EngineError)
    assert "did not answer within 0.3 s" in str(done.exception)
    wrong = CliRunner().invoke(app, [verb, str(bundle.path), *images, "--timeout-s", "soon"])
    assert isinstance(wrong.exception, RequestError)


@pytest.mark.fault(
    "a backend that hangs, then a reload or the end",
    outcome="the reload serves beside the silent engines, whose memory is released only when they return; "
    "`close()` does not wait for them",
)
def test_a_reload_serves_beside_a_silent_device(bundle: SmallBundle, caplog: pytest.LogCaptureFixture) -> None:
    runtime = Runtime.open(bundle.path, timeout_s=LIMIT_S)
    old, silence = runtime._active, Silence()
    closed = threading.Event()
    backend_close = old.backend.close
    old.backend.close = lambda: (backend_close(), closed.set())  # type: ignore[method-assign]
    break_engines(runtime, silence)
    with pytest.raises(EngineError, match="did not answer within"):
        runtime.infer(images_of(1))
    runtime.reload()
    check(runtime, bundle)
    assert "its memory is released when that returns" in caplog.text
    assert not closed.is_set()
    silence.over.set()
    assert closed.wait(30)
    again = Silence()
    break_engines(runtime, again)
    with pytest.raises(EngineError, match="did not answer within"):
        runtime.infer(images_of(1))
    begin = time.monotonic()
    runtime.close()
    assert time.monotonic() - begin < 20
    again.over.set()


def test_a_device_that_is_silent_from_the_start_is_no_hang(
    bundle: SmallBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tocom.runtime.backends.onnxruntime.backend import OnnxRuntimeEngine

    silence = Silence()
    monkeypatch.setattr(OnnxRuntimeEngine, "run", lambda self, images: silence(images))
    with pytest.raises(EngineError, match="did not answer within"):
        Runtime.open(bundle.path, timeout_s=LIMIT_S)
    silence.over.set()


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), "soon", True])
def test_bad_limits(bundle: SmallBundle, timeout_s: object) -> None:
    with pytest.raises(RequestError, match="'timeout_s' parameter must be a number of seconds"):
        Runtime.open(bundle.path, timeout_s=timeout_s)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.fault(
    "a backend that gives NaN or infinity", outcome="EngineError; the answer is dropped, the next is right"
)
def test_values_that_are_not_finite_are_no_answer(bundle: SmallBundle, value: float) -> None:
    with Runtime.open(bundle.path) as runtime:
        wrong = np.zeros((1, 5), np.float32)
        wrong[0, 3] = value
        mend = break_engines(runtime, lambda images: {"logits": wrong})
        with pytest.raises(EngineError, match=r"Degree 0 answered 1 of 5 values of 'logits' with NaN or infinity"):
            runtime.infer(images_of(1))
        with pytest.raises(EngineError, match="NaN or infinity"):
            runtime.submit(images_of(1)).result(timeout=30)
        mend()
        check(runtime, bundle)
        assert runtime.stats()["failures"] == 2


@pytest.mark.fault(
    "a backend that raises in the middle of a stream",
    outcome="the stream ends with that EngineError; requests and a new stream are answered",
)
def test_an_error_ends_the_stream_not_the_runtime(bundle: SmallBundle) -> None:
    def fail(images: np.ndarray) -> Any:
        raise EngineError("the device refused")

    with Runtime.open(bundle.path) as runtime:
        before = threading.active_count()
        frames: list[int] = []
        mend: Callable[[], None] | None = None
        with pytest.raises(EngineError, match="the device refused"):  # noqa: PT012
            for frame in runtime.stream((images_of(1, seed=seed) for seed in range(200)), fps=500):
                frames.append(frame.index)
                if len(frames) == 3:
                    mend = break_engines(runtime, fail)
        assert len(frames) == 3
        assert mend is not None
        mend()
        check(runtime, bundle)
        assert [frame.index for frame in runtime.stream([images_of(1)])] == [0]
        limit = time.monotonic() + 30
        while threading.active_count() > before and time.monotonic() < limit:
            time.sleep(0.01)
        assert threading.active_count() <= before, "the reader of the stream that ended is still there"


@pytest.fixture
def scripted(bundle: SmallBundle, monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    """TensorRT engines over a CUDA in host memory, taken by ``Runtime.open``."""
    cuda = HostCuda()
    write_engines(bundle)

    def opener(found: Bundle, threads: int | None, reason: str) -> TensorRtBackend:
        device = LibcudaDevice(path=cuda.path)
        return TensorRtBackend(found, name="tensorrt", reason=reason, trt=ScriptedTensorRt(cuda), device=device)

    monkeypatch.setitem(select._OPENERS, "tensorrt", opener)
    return cuda


@pytest.mark.fault(
    "a device that is lost and comes back",
    outcome="EngineError with CUDA's words while it is gone, a failed reload included; a reload serves when it is back",
)
def test_a_device_lost_and_back(bundle: SmallBundle, scripted: HostCuda, caplog: pytest.LogCaptureFixture) -> None:
    images = images_of(1, seed=4)
    with Runtime.open(bundle.path, "tensorrt") as runtime:
        scripted.lose()
        for _ in range(3):
            with pytest.raises(EngineError, match="an illegal memory access was encountered") as caught:
                runtime.infer(images)
            assert "\n" not in str(caught.value)
        with pytest.raises(EngineError, match="an illegal memory access was encountered"):
            runtime.reload()
        with pytest.raises(EngineError, match="an illegal memory access was encountered"):
            runtime.infer(images)
        # What the old engines held went with the device: giving it back is refused, and that is logged alone.
        scripted.forget()
        runtime.reload()
        result = runtime.infer(images)
        np.testing.assert_allclose(
            result.outputs["logits"], scripted_reference(images, result.degree), rtol=1e-5, atol=1e-5
        )
        assert "while closing" in caplog.text


@pytest.mark.fault("a device that is lost at the end", outcome="`close()` returns; what the device refuses is logged")
def test_closing_a_lost_device(bundle: SmallBundle, scripted: HostCuda, caplog: pytest.LogCaptureFixture) -> None:
    runtime = Runtime.open(bundle.path, "tensorrt")
    scripted.lose()
    runtime.close()
    assert "while closing" in caplog.text
    with pytest.raises(RequestError, match="this one is closed"):
        runtime.infer(images_of(1))


@pytest.mark.parametrize("fps", [None, 500.0])
@pytest.mark.fault(
    "a clock that goes backwards, jumps or stands still",
    outcome="right answers, no negative latency, nothing learned from it; the next true measurements count",
)
def test_a_clock_that_goes_back(bundle: SmallBundle, fps: float | None) -> None:
    now, steps = [1000.0], iter(())

    def clock() -> float:
        now[0] += next(steps, 0.001)
        return now[0]

    with Runtime.open(bundle.path) as opened:
        runtime = Runtime(opened._active, opened._options, clock=clock)
        runtime.warm_up()
        runtime.infer(images_of(1), 50.0)
        for odd in ([-500.0], [0.0] * 6, [0.001, -3.0], [0.001, 0.001, -1e9], [1e9], [0.001, 1e6]):
            steps = iter(odd)
            images = images_of(1)
            if fps is None:
                results = [runtime.infer(images, 50.0) for _ in range(3)]
            else:
                results = [frame.result for frame in runtime.stream([images], fps=None, budget_ms=50.0)]
            for result in results:
                assert result.latency_ms >= 0
                assert result.queue_ms >= 0
                assert result.latency_ms >= result.queue_ms
                expected = bundle.reference(images, result.degree)
                np.testing.assert_allclose(result.outputs["logits"], expected, atol=1e-4)
        steps = iter(())
        for _ in range(40):
            result = runtime.infer(images_of(1), 1e12)
        assert result.degree == 0, "one odd second must not cost the degree for ever"
        state = runtime.stats()["latency_model"]
        assert 0 < state["drift"] < float("inf")
        json.dumps(runtime.stats(), allow_nan=False)


@pytest.mark.fault("the wall clock is set while serving", outcome="nothing: every interval is of the monotonic clock")
def test_the_wall_clock_is_not_used(bundle: SmallBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Runtime.open(bundle.path) as runtime:
        monkeypatch.setattr(time, "time", lambda: -1e9)
        result = runtime.infer(images_of(1), 1000.0)
        assert result.met_budget
        assert 0 < result.latency_ms < 1000


@pytest.mark.fault(
    "a reload with a corrupt bundle while serving",
    outcome="BundleError for who reloads; every request meanwhile is answered right by the old bundle",
)
def test_corrupt_reloads_while_four_threads_ask(bundle: SmallBundle, tmp_path: Any) -> None:
    broken = write_small_bundle(tmp_path / "broken", seed=5)
    weights = broken.path / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    wrong: list[str] = []
    answered, stop = [0] * 4, threading.Event()
    with Runtime.open(bundle.path) as runtime:

        def ask(number: int) -> None:
            try:
                while not stop.is_set() or not answered[number]:
                    check(runtime, bundle, seed=number)
                    answered[number] += 1
            except BaseException as error:
                wrong.append(repr(error))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            with pytest.raises(BundleError, match=r"weights\.bin has sha256"):
                runtime.reload(broken.path)
        stop.set()
        for thread in threads:
            thread.join(60)
        assert wrong == []
        assert all(answered)
        assert runtime.stats()["failures"] == 0
        assert runtime.bundle.path == bundle.path


def files_and_threads() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("timeout_s", [None, 30.0])
@pytest.mark.fault(
    "eight threads opening and closing, one bundle and one cache",
    outcome="every runtime answers right; no file handle and no thread is left",
)
def test_eight_threads_open_and_close(bundle: SmallBundle, timeout_s: float | None) -> None:
    with Runtime.open(bundle.path, threads=1, timeout_s=timeout_s) as runtime:
        check(runtime, bundle)  # what the libraries start once is started
    before = files_and_threads()
    wrong: list[str] = []

    def work(number: int) -> None:
        try:
            for _ in range(2):
                with Runtime.open(bundle.path, threads=1, timeout_s=timeout_s) as runtime:
                    check(runtime, bundle, seed=number)
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "deadlock"
    assert wrong == []
    limit = time.monotonic() + 10
    while files_and_threads() != before and time.monotonic() < limit:  # the kernel reaps threads in its own time
        time.sleep(0.01)
    assert files_and_threads() == before


@pytest.fixture(autouse=True)
def _no_thread_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    limit = time.monotonic() + 30
    while any(thread.name == "tocom-device" for thread in threading.enumerate()) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name == "tocom-device"]

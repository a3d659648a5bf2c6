"""Submissions, deadlines, streams, async, reload, hooks, metrics, and many threads at once, on real bundles."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path

import numpy as np
import pytest
from small_bundles import SmallBundle, images_of, write_small_bundle

from tocom.errors import BudgetError, BundleError, RequestError
from tocom.formats.sealed_json import write_sealed_json
from tocom.runtime import Result, Runtime, State
from tocom.runtime.monitoring.logs import JsonFormatter
from tocom.runtime.monitoring.metrics import register_metrics


@pytest.fixture
def runtime(small_bundle: SmallBundle) -> Iterator[Runtime]:
    with Runtime.open(small_bundle.path) as opened:
        yield opened


class Gate:
    """Holds the engine of a runtime's every degree until it is opened; what runs is the real engine."""

    def __init__(self, runtime: Runtime) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.order: list[float] = []
        for engine in runtime._active.engines.values():
            engine.run = self._held(engine.run)  # type: ignore[method-assign]

    def _held(
        self, run: Callable[[np.ndarray], dict[str, np.ndarray]]
    ) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        def held(images: np.ndarray) -> dict[str, np.ndarray]:
            self.entered.set()
            assert self.open.wait(30)
            self.order.append(float(images.flat[0]))
            return run(images)

        return held


def marked(value: float) -> np.ndarray:
    images = images_of(1)
    images.flat[0] = value
    return images


def test_submit_answers_like_infer(runtime: Runtime, small_bundle: SmallBundle) -> None:
    futures = [runtime.submit(images_of(1, seed=seed), budget_ms=1000.0) for seed in range(20)]
    for seed, future in enumerate(futures):
        result = future.result(timeout=30)
        expected = small_bundle.reference(images_of(1, seed=seed), result.degree)
        np.testing.assert_allclose(result.outputs["logits"], expected, atol=1e-4)


def test_the_earliest_deadline_goes_first_and_no_deadline_last(runtime: Runtime) -> None:
    gate = Gate(runtime)
    futures = [runtime.submit(marked(0.0))]
    assert gate.entered.wait(30)
    now = time.monotonic()
    for value, deadline in ((4.0, None), (3.0, now + 90), (1.0, now + 30), (2.0, now + 60), (5.0, None)):
        futures.append(runtime.submit(marked(value), deadline=deadline))
    gate.open.set()
    for future in futures:
        future.result(timeout=30)
    assert gate.order == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_time_spent_queueing_counts_against_the_budget(runtime: Runtime) -> None:
    gate = Gate(runtime)
    first = runtime.submit(images_of(1))
    assert gate.entered.wait(30)
    second = runtime.submit(images_of(1), budget_ms=50.0)
    time.sleep(0.2)
    gate.open.set()
    first.result(timeout=30)
    late = second.result(timeout=30)
    assert late.queue_ms >= 150
    assert late.latency_ms >= late.queue_ms
    assert (late.met_budget, late.feasible) == (False, False)
    # Nothing could save it, so it did not cost more than the fastest degree.
    assert late.degree == 8


def test_deadlines(runtime: Runtime) -> None:
    ahead = runtime.infer(images_of(1), deadline=time.monotonic() + 5)
    assert ahead.met_budget
    assert ahead.budget_ms == pytest.approx(5000, abs=100)
    past = runtime.infer(images_of(1), deadline=time.monotonic() - 1)
    assert (past.met_budget, past.feasible, past.degree) == (False, False, 8)


def test_a_past_deadline_raises_when_asked(small_bundle: SmallBundle) -> None:
    with (
        Runtime.open(small_bundle.path, on_infeasible="raise") as runtime,
        pytest.raises(BudgetError, match=r"-\d+\.\d+ ms are left"),
    ):
        runtime.infer(images_of(1), deadline=time.monotonic() - 1)


@pytest.mark.parametrize("deadline", [float("nan"), float("inf"), "soon", True])
def test_bad_deadlines(runtime: Runtime, deadline: object) -> None:
    for call in (runtime.infer, runtime.submit):
        with pytest.raises(RequestError, match="'deadline' parameter must be a time in seconds"):
            call(images_of(1), deadline=deadline)  # type: ignore[operator]
        with pytest.raises(RequestError, match="not both"):
            call(images_of(1), 5.0, deadline=1.0)  # type: ignore[operator]


def test_bad_submissions_raise_at_once(runtime: Runtime) -> None:
    with pytest.raises(RequestError, match="float32"):
        runtime.submit(images_of(1).astype(np.float64))
    with pytest.raises(RequestError, match="'budget_ms'"):
        runtime.submit(images_of(1), budget_ms=-1)


def test_a_full_queue_refuses(small_bundle: SmallBundle) -> None:
    with Runtime.open(small_bundle.path, queue_limit=2) as runtime:
        gate = Gate(runtime)
        running = runtime.submit(images_of(1))
        assert gate.entered.wait(30)
        waiting = [runtime.submit(images_of(1)) for _ in range(2)]
        with pytest.raises(RequestError, match=r"2 requests wait already \(the 'queue_limit' parameter\)"):
            runtime.submit(images_of(1))
        gate.open.set()
        for future in (running, *waiting):
            future.result(timeout=30)


def test_what_was_cancelled_fills_no_queue(small_bundle: SmallBundle) -> None:
    with Runtime.open(small_bundle.path, queue_limit=2) as runtime:
        gate = Gate(runtime)
        running = runtime.submit(images_of(1))
        assert gate.entered.wait(30)
        given_up, kept = (runtime.submit(images_of(1)) for _ in range(2))
        assert given_up.cancel()
        later = runtime.submit(images_of(1))
        assert wait([given_up], timeout=1).done == {given_up}
        with pytest.raises(RequestError, match="2 requests wait already"):
            runtime.submit(images_of(1))
        gate.open.set()
        for future in (running, kept, later):
            future.result(timeout=30)


def test_close_cancels_what_waits_and_finishes_what_runs(small_bundle: SmallBundle) -> None:
    runtime = Runtime.open(small_bundle.path)
    gate = Gate(runtime)
    running = runtime.submit(images_of(1))
    assert gate.entered.wait(30)
    waiting = runtime.submit(images_of(1))
    closer = threading.Thread(target=runtime.close)
    closer.start()
    with pytest.raises(CancelledError):
        waiting.result(timeout=30)
    gate.open.set()
    closer.join(30)
    assert running.result(timeout=30).outputs["logits"].shape == (1, 5)
    assert runtime.state is State.CLOSED
    for call in (runtime.infer, runtime.submit):
        with pytest.raises(RequestError, match="this one is closed"):
            call(images_of(1))
    with pytest.raises(RequestError, match="this one is closed"):
        runtime.reload()


def test_a_cancelled_submission_is_not_run(runtime: Runtime) -> None:
    gate = Gate(runtime)
    running = runtime.submit(marked(0.0))
    assert gate.entered.wait(30)
    waiting = runtime.submit(marked(1.0))
    assert waiting.cancel()
    last = runtime.submit(marked(2.0))
    gate.open.set()
    running.result(timeout=30)
    last.result(timeout=30)
    assert gate.order == [0.0, 2.0]


def test_async(runtime: Runtime, small_bundle: SmallBundle) -> None:
    async def several() -> list[Result]:
        return await asyncio.gather(*(runtime.infer_async(images_of(1, seed=s), 1000.0) for s in range(5)))

    for seed, result in enumerate(asyncio.run(several())):
        expected = small_bundle.reference(images_of(1, seed=seed), result.degree)
        np.testing.assert_allclose(result.outputs["logits"], expected, atol=1e-4)


def test_a_stream_answers_the_newest_frame_and_counts_the_dropped(runtime: Runtime) -> None:
    gate = Gate(runtime)
    read = threading.Event()

    def camera() -> Iterator[np.ndarray]:
        for index in range(10):
            if index == 1:
                assert gate.entered.wait(30)
            yield marked(float(index))
        read.set()
        # The consumer holds frame 0 until all others were read.
        gate.open.set()

    frames = list(runtime.stream(camera()))
    assert read.is_set()
    assert [frame.index for frame in frames] == [0, 9]
    assert [frame.dropped for frame in frames][-1] == 8
    assert gate.order == [0.0, 9.0]
    assert runtime.stats()["frames_dropped"] == 8


def test_a_stream_paces_a_source_that_does_not_block(runtime: Runtime) -> None:
    begin = time.monotonic()
    frames = list(runtime.stream([images_of(1)] * 6, fps=50))
    assert time.monotonic() - begin >= 5 / 50
    # A busy machine may drop some, never the last one.
    assert frames[-1].index == 5
    assert [frame.index for frame in frames] == [place + frame.dropped for place, frame in enumerate(frames)]
    assert all(frame.result.budget_ms == pytest.approx(20.0) for frame in frames)


@pytest.mark.fault(
    "a camera that raises in the middle of a stream", outcome="its error reaches the consumer; no thread stays"
)
def test_a_stream_ends_with_its_source_or_its_consumer(runtime: Runtime) -> None:
    assert list(runtime.stream([])) == []

    def broken() -> Iterator[np.ndarray]:
        yield images_of(1)
        raise OSError("camera unplugged")

    frames = runtime.stream(broken())
    next(frames)
    with pytest.raises(OSError, match="camera unplugged"):
        next(frames)
    before = threading.active_count()
    endless = runtime.stream((images_of(1) for _ in iter(int, 1)), fps=500)
    next(endless)
    endless.close()  # type: ignore[attr-defined]
    limit = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < limit:
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "30"])
def test_bad_rates(runtime: Runtime, fps: object) -> None:
    with pytest.raises(RequestError, match="'fps' parameter"):
        runtime.stream([], fps=fps)  # type: ignore[arg-type]


def test_reload_serves_the_new_bundle(runtime: Runtime, tmp_path: Path) -> None:
    other = write_small_bundle(tmp_path / "other", degrees=(0, 2), seed=5)
    runtime.reload(other.path)
    assert runtime.degrees == (0, 2)
    images = images_of(1)
    result = runtime.infer(images)
    np.testing.assert_allclose(result.outputs["logits"], other.reference(images, result.degree), atol=1e-4)
    assert runtime.stats()["reloads"] == 1


def test_a_reload_after_the_process_went_to_another_folder(
    small_bundle: SmallBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_bundle.path.parent)
    with Runtime.open(small_bundle.path.name) as runtime:
        monkeypatch.chdir(tmp_path)
        for _ in range(2):
            runtime.reload()
        assert runtime.infer(images_of(1), degree=4).degree == 4


@pytest.mark.parametrize("damage", ["missing", "tampered", "broken model"])
@pytest.mark.fault(
    "a reload of a bundle that is missing, tampered with or no model",
    outcome="the error for who reloads; the old bundle serves on",
)
def test_a_failed_reload_keeps_the_old_bundle(
    runtime: Runtime, small_bundle: SmallBundle, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = write_small_bundle(tmp_path / "other", seed=5)
    if damage == "missing":
        shutil.rmtree(other.path)
    elif damage == "tampered":
        (other.path / "degree-00.onnx").write_bytes(b"x")
    else:
        content = b"no protobuf \xff"
        (other.path / "degree-04.onnx").write_bytes(content)
        manifest = json.loads((other.path / "bundle.json").read_text())
        manifest["files"]["degree-04.onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        write_sealed_json(other.path / "bundle.json", manifest)
    with caplog.at_level(logging.WARNING), pytest.raises(BundleError) as caught:
        runtime.reload(other.path)
    assert "\n" not in str(caught.value)
    assert "serving on with" in caplog.text
    assert runtime.bundle.path == small_bundle.path
    images = images_of(1)
    logits = runtime.infer(images, degree=4).outputs["logits"]
    np.testing.assert_allclose(logits, small_bundle.reference(images, 4), atol=1e-4)


def test_hooks_see_every_result_and_cannot_break_one(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Result] = []

    def broken(result: Result) -> None:
        raise RuntimeError("the hook's own fault")

    runtime.add_hook(broken)
    runtime.add_hook(seen.append)
    results = [runtime.infer(images_of(1)), runtime.submit(images_of(1)).result(timeout=30)]
    assert seen == results
    assert "the hook's own fault" in caplog.text


def test_metrics_show_the_statistics(runtime: Runtime) -> None:
    prometheus = pytest.importorskip("prometheus_client")
    registry = prometheus.CollectorRegistry()
    register_metrics(runtime, name="cam", registry=registry)
    runtime.infer(images_of(1), budget_ms=1000.0)
    runtime.infer(images_of(1), budget_ms=1e-6)
    labels = {"runtime": "cam"}
    assert registry.get_sample_value("tocom_requests_total", {**labels, "degree": "0"}) == 1
    assert registry.get_sample_value("tocom_requests_total", {**labels, "degree": "8"}) == 1
    assert registry.get_sample_value("tocom_misses_total", labels) == 1
    assert registry.get_sample_value("tocom_latency_drift", labels) > 0
    p95 = registry.get_sample_value("tocom_latency_seconds", {**labels, "quantile": "0.95"})
    assert p95 == pytest.approx(runtime.stats()["latency_ms"]["p95"] / 1e3)


def test_log_lines_are_json_with_the_events_fields(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tocom.runtime"):
        runtime.infer(images_of(1), budget_ms=1000.0)
        runtime.infer(images_of(1), budget_ms=1e-6)
    (record,) = [record for record in caplog.records if getattr(record, "event", None) == "switch"]
    line = json.loads(JsonFormatter().format(record))
    assert (line["event"], line["from_degree"], line["to_degree"]) == ("switch", 0, 8)
    assert line["message"] == "switched from degree 0 to 8"


def _soak(paths: list[SmallBundle], threads: int, requests: int, reloads: int) -> tuple[list[str], dict[str, object]]:
    """Answer from many threads with mixed budgets and reloads in between; return what was wrong."""
    wrong: list[str] = []
    images = [images_of(1 + seed % 3, seed=seed) for seed in range(8)]
    expected = {
        (index, degree): [bundle.reference(images[index], degree) for bundle in paths]
        for index in range(8)
        for degree in (0, 4, 8)
    }
    with Runtime.open(paths[0].path) as runtime:

        def work(seed: int) -> None:
            draw = random.Random(seed)
            try:
                for _ in range(requests // threads):
                    index = draw.randrange(8)
                    budget = draw.choice([None, 1e-3, 0.05, 0.2, 5.0, 100.0])
                    if draw.random() < 0.2:
                        result = runtime.submit(images[index], budget).result(timeout=60)
                    else:
                        result = runtime.infer(images[index], budget)
                    logits = result.outputs["logits"]
                    # A reload may come between; the answer must be that of one bundle, at the degree it names.
                    if not any(np.allclose(logits, want, atol=1e-4) for want in expected[index, result.degree]):
                        wrong.append(f"degree {result.degree}, image {index}")
            except Exception as error:
                wrong.append(repr(error))

        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
        for worker in workers:
            worker.start()
        for turn in range(reloads):
            runtime.reload(paths[(turn + 1) % 2].path)
            time.sleep(0.05)
        for worker in workers:
            worker.join(240)
            assert not worker.is_alive(), "deadlock"
        return wrong, runtime.stats()


@pytest.mark.fault("eight threads, random budgets and reloads", outcome="no wrong answer, no failure")
def test_many_threads_mixed_budgets_and_reloads_give_no_wrong_answer(tmp_path: Path) -> None:
    paths = [write_small_bundle(tmp_path / "a"), write_small_bundle(tmp_path / "b", seed=9)]
    wrong, stats = _soak(paths, threads=8, requests=4000, reloads=4)
    assert wrong == []
    assert (stats["requests"], stats["reloads"], stats["failures"]) == (4000, 4, 0)


def _resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


@pytest.mark.slow
def test_twenty_thousand_requests_on_eight_threads_do_not_grow_memory(tmp_path: Path) -> None:
    paths = [write_small_bundle(tmp_path / "a", width=256), write_small_bundle(tmp_path / "b", width=256, seed=9)]
    _soak(paths, threads=8, requests=4000, reloads=4)
    gc.collect()
    before = _resident_bytes()
    wrong, stats = _soak(paths, threads=8, requests=20_000, reloads=10)
    gc.collect()
    assert wrong == []
    assert stats["requests"] == 20_000
    assert _resident_bytes() - before < 8 << 20

"""Every way to end or to copy a process while a runtime computes in it: a clean code or one error, and no hang."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from small_bundles import SmallBundle, write_small_bundle

from tocom.errors import RequestError
from tocom.runtime import Runtime

# A model that takes some milliseconds, so that work is running at the end of the process.
SCRIPT = """
import asyncio, itertools, multiprocessing, os, signal, sys, threading, time
import numpy as np
from tocom.errors import RequestError
from tocom.runtime import Runtime

images = np.zeros((1, 3, 8, 8), np.float32)

def opened(**options):
    return Runtime.open(sys.argv[1], threads=2, **options)

def told(error):
    text = str(error)
    assert "\\n" not in text, text
    print(type(error).__name__, "fork" if "fork" in text else text, flush=True)

"""


@pytest.fixture(scope="module")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> SmallBundle:
    return write_small_bundle(tmp_path_factory.mktemp("slow") / "bundle", width=768, layers=(9, 4, 2))


def start(bundle: SmallBundle, body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + textwrap.dedent(body), str(bundle.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def check(bundle: SmallBundle, body: str, code: int = 0, out: str = "", err: str = "") -> None:
    ended = end_of(start(bundle, body))
    assert ended[:2] == (code, out), ended[2]
    assert err in ended[2]
    for bad in ("Fatal Python error", "terminate called", "Segmentation", "core dumped", "Logging error"):
        assert bad not in ended[2]


ENDS = {
    "queued work is left behind": ("runtime = opened()\nfor _ in range(64): runtime.submit(images)", 0, ""),
    "queued work under a guard is left behind": (
        "runtime = opened(timeout_s=30)\nfor _ in range(64): runtime.submit(images)",
        0,
        "",
    ),
    "an exception": ("runtime = opened()\nruntime.submit(images)\nraise KeyError('own')", 1, "KeyError: 'own'"),
    "sys.exit in the midst": ("runtime = opened()\nfor _ in range(64): runtime.submit(images)\nsys.exit(7)", 7, ""),
    "a daemon thread that goes on": (
        """
        runtime = opened()
        def work():
            while True: runtime.infer(images)
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.1)
        """,
        0,
        "",
    ),
    "a thread that still waits for its answers": (
        """
        runtime = opened()
        def work():
            futures = [runtime.submit(images) for _ in range(20)]
            assert [future.result().degree for future in futures] == [0] * 20
        threading.Thread(target=work).start()
        """,
        0,
        "",
    ),
    "a stream that is left, whose source goes on": (
        """
        def frames():
            while True:
                time.sleep(0.002)
                yield images
        runtime = opened()
        stream = runtime.stream(frames())
        next(stream)
        """,
        0,
        "",
    ),
    "an event loop in a daemon thread, whose camera stalls": (
        """
        runtime = opened()
        async def watch():
            async for frame in runtime.streams({"camera": (time.sleep(60) for _ in "ab")}): pass
        threading.Thread(target=lambda: asyncio.run(watch()), daemon=True).start()
        time.sleep(0.1)
        """,
        0,
        "",
    ),
    "a time-out of asyncio": (
        """
        async def main():
            with opened() as runtime:
                tasks = [asyncio.wait_for(runtime.infer_async(images), 0.005) for _ in range(600)]
                done = await asyncio.gather(*tasks, return_exceptions=True)
                assert any(isinstance(each, asyncio.TimeoutError) for each in done)
                assert (await runtime.infer_async(images)).degree == 0
        asyncio.run(main())
        """,
        0,
        "",
    ),
    "a reload in a daemon thread": (
        """
        runtime = opened()
        def work():
            while True: runtime.reload()
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.1)
        """,
        0,
        "",
    ),
    "a thread that opens and prepares after the main one": (
        """
        def work():
            threading.main_thread().join()
            with opened() as runtime:
                frame = np.zeros((40, 60, 3), np.uint8)
                assert runtime.infer(runtime.preprocess(frame)).degree == 0
                runtime.reload()
        threading.Thread(target=work).start()
        """,
        0,
        "",
    ),
    "an event loop that ends before its answers": (
        """
        runtime = opened()
        async def main():
            for _ in range(40): asyncio.ensure_future(runtime.infer_async(images))
            await asyncio.sleep(0.02)
        asyncio.run(main())
        """,
        0,
        "",
    ),
}


def some_slow(kinds: Iterable[str], quick: Sequence[str]) -> list[Any]:
    """Return the kinds as parameters; those that a quick run can spare are slow."""
    return [pytest.param(kind, marks=() if kind in quick else pytest.mark.slow) for kind in kinds]


QUICK_ENDS = (
    "a reload in a daemon thread",
    "a thread that opens and prepares after the main one",
    "queued work is left behind",
    "queued work under a guard is left behind",
    "a daemon thread that goes on",
    "a stream that is left, whose source goes on",
    "a time-out of asyncio",
)


@pytest.mark.parametrize("kind", some_slow(ENDS, QUICK_ENDS))
@pytest.mark.fault("a process that ends while work is queued or runs", outcome="its own exit code; no abort, no hang")
def test_an_end_under_load(slow_bundle: SmallBundle, kind: str) -> None:
    body, code, err = ENDS[kind]
    check(slow_bundle, body, code, err=err)


@pytest.mark.slow
def test_a_hundred_ends(slow_bundle: SmallBundle) -> None:
    """Of all kinds in turn, four at once: on a loaded machine no end hangs or aborts either."""

    def end(kind: str) -> None:
        body, code, err = ENDS[kind]
        check(slow_bundle, body, code, err=err)

    kinds = list(itertools.islice(itertools.cycle(ENDS), 100))
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(end, kinds))) == 100


HANDLERS = {
    "close": ("runtime.close(); sys.exit(0)", ""),
    "stats": ("runtime.stats(); runtime.close(); sys.exit(0)", ""),
    "only close": ("runtime.close()", ""),
    "infer": ("runtime.infer(images); runtime.reload; os.write(1, b'answered\\n'); sys.exit(0)", "answered\n"),
}
LOOPS = {
    "infer": "while True: runtime.infer(images)",
    "guarded": "while True: runtime.infer(images)",
    "submit": "while True: runtime.submit(images).result()",
    "both": "while True: runtime.submit(images); runtime.infer(images)",
    "stream": "for frame in runtime.stream(itertools.repeat(images)): pass",
    "stalled": "for frame in runtime.stream(time.sleep(60) for _ in 'ab'): pass",
}


@pytest.mark.parametrize(
    ("handler", "loop"),
    [
        ("close", "infer"),
        ("stats", "both"),
        ("only close", "stream"),
        ("only close", "stalled"),
        *(pytest.param(handler, "infer", marks=pytest.mark.slow) for handler in HANDLERS if handler != "close"),
        *(pytest.param("stats", loop, marks=pytest.mark.slow) for loop in LOOPS if loop not in ("infer", "both")),
    ],
)
@pytest.mark.fault(
    "a signal's handler that calls the runtime which its own thread is in", outcome="it runs, and the process ends"
)
def test_a_signal_handler_may_call_the_runtime(slow_bundle: SmallBundle, handler: str, loop: str) -> None:
    action, out = HANDLERS[handler]
    body = f"""
        runtime = opened({"timeout_s=30" if loop == "guarded" else "queue_limit=10**6"})
        def handle(*_):
            {action}
        signal.signal(signal.SIGTERM, handle)
        print("ready", flush=True)
        try:
            {LOOPS[loop]}
        except RequestError as error:
            assert "closed" in str(error)
    """
    process = start(slow_bundle, body)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.15)
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    code, printed, err = end_of(process)
    assert (code, printed) == (0, out), err
    assert time.monotonic() - begin < 20


def test_ctrl_c_ends_an_inference_with_its_code(slow_bundle: SmallBundle) -> None:
    process = start(slow_bundle, "runtime = opened()\nprint('ready', flush=True)\nwhile True: runtime.infer(images)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    code, _, err = end_of(process)
    assert (code, err.splitlines()[-1]) == (-signal.SIGINT, "KeyboardInterrupt")


FORKS = {
    "after use": "runtime = opened(); runtime.infer(images)",
    "before use": "runtime = opened(warm=False)",
    "under load": "runtime = opened(); [runtime.submit(images) for _ in range(30)]",
    "under a guard": "runtime = opened(timeout_s=30); runtime.infer(images)",
}


@pytest.mark.parametrize("kind", some_slow(FORKS, ("under load", "before use")))
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.fault("a process that is forked from one with an open runtime", outcome="RequestError that names the cure")
def test_a_forked_process_is_told(slow_bundle: SmallBundle, kind: str) -> None:
    body = f"""
        {FORKS[kind]}
        child = os.fork()
        if child == 0:
            for call in (runtime.infer, runtime.submit, lambda images: next(runtime.stream([images]))):
                try:
                    call(images)
                except RequestError as error:
                    told(error)
            assert runtime.stats()["state"] == "forked"
            runtime.close()
            with opened() as own:
                print(own.infer(images).degree, flush=True)
            sys.exit(3)  # through the interpreter's end, with all destructors
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        runtime.warm_up()
        print(runtime.infer(images).degree)
    """
    check(slow_bundle, body, out="RequestError fork\n" * 3 + "0\n0\n")


@pytest.mark.parametrize("method", some_slow(("fork", "spawn", "forkserver"), ("fork",)))
@pytest.mark.fault(
    "a runtime in a pool of processes", outcome="RequestError that names the cure; each may open its own"
)
def test_pools(slow_bundle: SmallBundle, method: str) -> None:
    body = f"""
        from concurrent.futures import ProcessPoolExecutor
        runtime = opened()
        with ProcessPoolExecutor(1, multiprocessing.get_context("{method}")) as pool:
            try:
                pool.submit(runtime.infer, images).result()
            except RequestError as error:
                print("sent" if "cannot be copied or sent" in str(error) else error)
    """
    check(slow_bundle, body, out="sent\n")


def test_a_runtime_is_not_pickled(slow_bundle: SmallBundle) -> None:
    import copy
    import pickle

    with Runtime.open(slow_bundle.path) as runtime:
        for send in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(RequestError, match=r"call Runtime\.open\(\) in each process"):
                send(runtime)


@pytest.mark.fault("Ctrl-C while a video does not open", outcome="the process ends as at any other time")
def test_an_interrupt_while_a_video_does_not_open(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    os.mkfifo(tmp_path / "pipe.mp4")  # nobody writes it: OpenCV waits
    program = (
        "import os, signal, sys, threading, cv2\n"
        "from tocom.cli.sources import video_source\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n    video_source(sys.argv[1])\nexcept KeyboardInterrupt:\n    sys.exit(130)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "pipe.mp4"], timeout=60, check=False)
    assert done.returncode == 130

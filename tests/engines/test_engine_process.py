"""The child process: what its death looks like from here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tocom.engine_store import SELF_REGISTER
from tocom.errors import EngineError, OutputError
from tocom.export.engine_backend import BackendFound
from tocom.export.engine_options import BuildOptions
from tocom.export.engine_process import Job, build_engines

PROLOGUE = """
import json, os, signal, sys
request = json.loads(sys.stdin.read())
events = os.fdopen(request["events"], "w")
def send(**event):
    events.write(json.dumps(event) + "\\n")
    events.flush()
"""


def follow(script: str, degrees: tuple[int, ...] = (0, 4)) -> tuple[list, list]:
    done, progress = [], []
    jobs = [Job(degree, Path("x.onnx"), Path("x.engine"), 0) for degree in degrees]
    build_engines(
        BackendFound("tensorrt", "10.3.0", "tensorrt"),
        jobs,
        BuildOptions(),
        op_plugin=None,
        timing_cache=Path("timing.cache"),
        on_done=lambda degree, facts: done.append((degree, facts["size_bytes"])),
        progress=lambda *what: progress.append(what),
        worker=("-c", PROLOGUE + script),
    )
    return done, progress


def test_events_become_progress_and_results():
    done, progress = follow(
        """
for job in request["jobs"]:
    send(event="begin", degree=job["degree"])
    send(event="phase", name="tactics", parent=None, step=2, steps=5)
    send(event="done", degree=job["degree"], size_bytes=job["degree"] * 10)
"""
    )
    assert done == [(0, 0), (4, 40)]
    assert progress[1] == ("degree 0: tactics 2/5", 0, 2)
    assert progress[-1] == ("degree 4: built", 2, 2)


def test_the_library_is_not_asked_to_register_itself(monkeypatch):
    monkeypatch.setenv(SELF_REGISTER, "1")
    script = f"""
for job in request["jobs"]:
    send(event="done", degree=job["degree"], size_bytes=int({SELF_REGISTER!r} in os.environ))
"""
    assert follow(script)[0] == [(0, 0), (4, 0)]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "os.kill(os.getpid(), signal.SIGSEGV)",
            r"was killed by SIGSEGV while building degree 0. Its log: ERROR: last words",
        ),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            r"killed by SIGKILL while building degree 0. This is often a lack of memory",
        ),
        (
            "print('native text', file=sys.stderr); sys.exit(3)",
            r"ended with status 3 while building degree 0. Its log: .*native text",
        ),
        ("sys.exit(0)", r"ended with status 0 while building degree 0"),
        ("events.write('{cut'); events.flush(); os.abort()", r"SIGABRT while .* Its log: .*\{cut"),
    ],
)
@pytest.mark.fault(
    "a native crash, a kill or an exit in a build", outcome="EngineError with the captured log; the caller lives"
)
def test_a_death_is_one_error_with_the_log(script, message):
    with pytest.raises(EngineError, match=message) as caught:
        follow(f"send(event='begin', degree=0)\nsend(event='log', level='ERROR', text='last words')\n{script}")
    assert "\n" not in str(caught.value)


def test_engines_before_the_crash_count():
    done = []
    with pytest.raises(EngineError, match="killed by SIGABRT while building degree 4"):
        build_engines(
            BackendFound("tensorrt", "10.3.0", "tensorrt"),
            [Job(0, Path("a"), Path("b"), 0), Job(4, Path("a"), Path("b"), 0)],
            BuildOptions(),
            op_plugin=None,
            timing_cache=Path("c"),
            on_done=lambda degree, facts: done.append(degree),
            progress=lambda *what: None,
            worker=(
                "-c",
                PROLOGUE + "send(event='begin', degree=0); send(event='done', degree=0)\n"
                "send(event='begin', degree=4); os.abort()",
            ),
        )
    assert done == [0]


@pytest.mark.parametrize(("kind", "error"), [("EngineError", EngineError), ("OutputError", OutputError)])
def test_an_error_of_ours_keeps_its_kind(kind, error):
    with pytest.raises(error, match=r"^what the worker said$"):
        follow(f"send(event='failed', kind={kind!r}, message='what the worker said'); sys.exit(1)")


def test_a_long_log_is_cut_at_its_start():
    with pytest.raises(EngineError) as caught:
        follow("print('x' * 5000 + ' the end', file=sys.stderr); sys.exit(9)")
    assert len(str(caught.value)) < 1500
    assert str(caught.value).endswith("the end")


def test_tensorrt_that_is_not_there():
    with pytest.raises(EngineError, match="no_such_module cannot be imported"):
        build_engines(
            BackendFound("tensorrt", "10.3.0", "no_such_module"),
            [Job(0, Path("a"), Path("b"), 0)],
            BuildOptions(),
            op_plugin=None,
            timing_cache=Path("c"),
            on_done=lambda degree, facts: None,
            progress=lambda *what: None,
        )


def test_an_interrupt_ends_the_child():
    def interrupt(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(
            BackendFound("tensorrt", "10.3.0", "tensorrt"),
            [Job(0, Path("a"), Path("b"), 0)],
            BuildOptions(),
            op_plugin=None,
            timing_cache=Path("c"),
            on_done=lambda degree, facts: None,
            progress=interrupt,
            worker=("-c", PROLOGUE + "send(event='begin', degree=0); import time; time.sleep(60)"),
        )

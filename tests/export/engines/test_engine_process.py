"""The child process: what its death looks like from here."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from tocom.errors import EngineError, OutputError
from tocom.export.engines.backend import BackendFound
from tocom.export.engines.process import Job, build_engines
from tocom.formats.build_options import BuildOptions
from tocom.formats.engine import SELF_REGISTER

PROLOGUE = """
import json, os, signal, sys
request = json.loads(sys.stdin.read())
events = os.fdopen(request["events"], "w")
def send(**event):
    events.write(json.dumps(event) + "\\n")
    events.flush()
"""


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """However a build ends, it leaves nothing in the folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


class Clock:
    """Stands for the module time where limits are looked at: seconds pass when a test says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tocom.system.child_process.time", clock)
    return clock


def follow(script: str, degrees: tuple[int, ...] = (0, 4), then=lambda what: None, **limits) -> tuple[list, list]:
    done, progress = [], []

    def heard(what: str, *steps: int) -> None:
        progress.append((what, *steps))
        then(what)

    jobs = [Job(degree, Path("x.onnx"), Path("x.engine"), 0) for degree in degrees]
    build_engines(
        BackendFound("tensorrt", "10.3.0", "tensorrt"),
        jobs,
        BuildOptions(),
        op_plugin=None,
        timing_cache=Path("timing.cache"),
        on_done=lambda degree, facts: done.append((degree, facts["size_bytes"])),
        progress=heard,
        worker=("-c", PROLOGUE + script),
        **limits,
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


# Starts a process of its own that keeps the way to the parent open, as a compiler would.
HANGS = """
send(event="log", level="ERROR", text="last words")
if not os.fork():
    events.write('{"event": "begin", "degree": 0}\\n{cut')
    events.flush()
    import time; time.sleep(8)
"""


@pytest.mark.parametrize("script", ["time.sleep(600)", "events.close(); os.close(2); time.sleep(600)"])
@pytest.mark.fault("a build that hangs", outcome="EngineError with the captured log after `--timeout-s`; it is killed")
def test_a_hang_is_one_error_with_the_log(script, clock):
    def pass_an_hour(what: str) -> None:
        clock.now += 3600

    begin = time.monotonic()
    with pytest.raises(EngineError, match=r"longer than 3599 s while building degree 0\. Its log: ERROR: last words"):
        follow(f"{HANGS}import time; {script}", timeout_s=3599, then=pass_an_hour)
    assert time.monotonic() - begin < 60


@pytest.mark.fault("a build that takes too much memory", outcome="EngineError with the captured log; it is killed")
def test_too_much_memory_is_one_error_with_the_log():
    hog = "hog = bytes(range(256)) * (400 << 12); import time; time.sleep(600)"
    message = rf"held \d+ bytes of memory, allowed are {200 << 20} while building degree 4\."
    with pytest.raises(EngineError, match=message):
        follow(f"send(event='begin', degree=4); {hog}", memory_limit_mib=200)


def test_the_time_is_counted_for_each_engine(clock):
    def pass_a_minute(what: str) -> None:
        clock.now += 60

    script = """
for job in request["jobs"]:
    send(event="begin", degree=job["degree"])
    send(event="done", degree=job["degree"], size_bytes=1)
"""
    done, _ = follow(script, degrees=(0, 2, 4, 8), timeout_s=150, then=pass_a_minute)
    assert [degree for degree, _ in done] == [0, 2, 4, 8]
    assert clock.now > 150


def test_what_a_killed_build_left_in_the_temporary_folder_is_removed(scratch):
    (scratch / ".tocom-build.k1ll3d00.tocom-part").mkdir()
    (scratch / ".tocom-build.k1ll3d00.tocom-part" / "stderr.txt").write_bytes(b"last words")
    follow("for job in request['jobs']: send(event='done', degree=job['degree'], size_bytes=1)")


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

"""The parent's side of a build: start the child, follow its events, turn whatever goes wrong into one error."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tocom.errors import EngineError, OutputError, TocomError
from tocom.export.engines.backend import BackendFound, link_libraries
from tocom.export.op_plugin.library import OpPluginLibrary
from tocom.formats.build_options import BuildOptions
from tocom.formats.engine import SELF_REGISTER
from tocom.system.child_process import LOOK_EVERY_S, Limits, how_it_ended, tail
from tocom.system.files import scratch_folder
from tocom.system.progress import Progress

__all__ = ["Job", "build_engines"]

_WORKER = "tocom.export.engines.worker"
# The op plugin writes to standard error where TensorRT gave it no logger (common/errors.cpp).
_OP_PLUGIN_PREFIX = "tocom op plugin: "
_OP_PLUGIN_LINES = 2


@dataclass(frozen=True)
class Job:
    """One engine to build."""

    degree: int
    onnx: Path
    engine: Path
    op_nodes: int


def build_engines(
    backend: BackendFound,
    jobs: Sequence[Job],
    options: BuildOptions,
    *,
    op_plugin: OpPluginLibrary | None,
    compute_capabilities: Sequence[str] = (),
    timing_cache: Path,
    on_done: Callable[[int, dict[str, Any]], object],
    progress: Progress,
    timeout_s: float | None = None,
    memory_limit_mib: int | None = None,
    worker: Sequence[str] = ("-m", _WORKER),
) -> None:
    """Build the jobs in one child process, in order, so that a native crash ends it and not this process.

    Args:
        backend: What builds.
        jobs: The engines; each appears whole or not at all.
        options: How.
        op_plugin: Library to load, or None for native lowering.
        compute_capabilities: GPUs to build for; empty for the one that is here.
        timing_cache: File shared by the degrees; read if it is there, and written after each engine.
        on_done: Called after each engine with its degree and what the worker reports of it.
        progress: Called with what is being done, the steps done, and all steps.
        timeout_s: Seconds that one engine may take; None sets no limit.
        memory_limit_mib: Most memory that the child process may hold in RAM, in MiB; None sets no limit.
        worker: Arguments that start the worker; tests put another one in.

    Raises:
        EngineError: TensorRT refused, or the child crashed, took too long or too much; the message holds the last log
            lines.
        OutputError: An engine cannot be written.
    """
    with scratch_folder("tocom-build") as folder, contextlib.ExitStack() as stack:
        read_end, write_end = os.pipe()
        stack.callback(os.close, read_end)
        request = {
            "module": backend.module,
            "preload": [str(library) for library in backend.libraries],
            "op_plugin": None
            if op_plugin is None
            else {"path": str(op_plugin.path.resolve()), "sha256": op_plugin.sha256},
            "jobs": [
                {"degree": j.degree, "onnx": str(j.onnx), "engine": str(j.engine), "op_nodes": j.op_nodes} for j in jobs
            ],
            "compute_capabilities": list(compute_capabilities),
            "options": asdict(options),
            "timing_cache": str(timing_cache),
            "events": write_end,
        }
        limits = Limits(timeout_s, None if memory_limit_mib is None else memory_limit_mib << 20)
        try:
            links = folder / "links"
            links.mkdir()
            environment = link_libraries(backend, links)
            environment.pop(SELF_REGISTER, None)
            (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
            stdin = stack.enter_context((folder / "request.json").open("rb"))
            stderr = stack.enter_context((folder / "stderr.txt").open("w+b"))
            child = subprocess.Popen(
                [sys.executable, *worker],
                stdin=stdin,
                stdout=stderr,
                stderr=stderr,
                env=environment,
                pass_fds=(write_end,),
            )
        except OSError as error:
            raise OutputError(f"Cannot start a build in {folder}: {error}. Check the free space there.") from error
        finally:
            os.close(write_end)
        try:
            follower = _Follower(jobs, on_done, progress, limits)
            why = _follow(child, read_end, follower, limits)
        finally:
            child.kill()
            code = child.wait()
        stderr.seek(0)
        follower.finish(why or how_it_ended(code), code, stderr.read().decode("utf-8", errors="replace"))


def _follow(child: subprocess.Popen[bytes], read_end: int, follower: _Follower, limits: Limits) -> str | None:
    """Hand on the child's events until it ended; return why it must be killed, or None when it ended by itself."""
    poller = select.poll()
    poller.register(read_end, select.POLLIN)
    rest = b""
    while (why := limits.exceeded(child.pid)) is None:
        ended = child.poll() is not None  # asked before the last look, or what it said in between would be lost
        if poller.poll(LOOK_EVERY_S * 1000):
            if chunk := os.read(read_end, 1 << 16):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    follower.take(line.decode("utf-8", errors="replace"))
                continue
            poller.unregister(read_end)  # nobody can write any more; what is left is the child's end
        if ended:
            break
    follower.take(rest.decode("utf-8", errors="replace"))
    return why


class _Follower:
    """Reads the child's events and knows what to say when it ends."""

    def __init__(
        self,
        jobs: Sequence[Job],
        on_done: Callable[[int, dict[str, Any]], object],
        progress: Progress,
        limits: Limits,
    ) -> None:
        self._left = [job.degree for job in jobs]
        self._total = len(jobs)
        self._on_done = on_done
        self._progress = progress
        self._limits = limits
        self._stage = "starting"
        self._log: list[str] = []
        self._failure: TocomError | None = None

    def take(self, line: str) -> None:
        """Handle one event. A line that is not one, such as one cut off by a crash, counts as log."""
        try:
            event = json.loads(line)
            kind = event["event"]
        except (ValueError, KeyError, TypeError):
            self._log.append(line.strip())
            return
        done = self._total - len(self._left)
        if kind == "begin":
            self._stage = f"building degree {event['degree']}"
            self._progress(f"degree {event['degree']}: reading", done, self._total)
        elif kind == "stage":
            self._stage = event["what"]
        elif kind == "phase":
            steps = f" {event['step']}/{event['steps']}" if event["steps"] > 1 else ""
            self._progress(f"{self._stage.removeprefix('building ')}: {event['name']}{steps}", done, self._total)
        elif kind == "log":
            self._log.append(f"{event['level']}: {event['text']}")
        elif kind == "done":
            self._left.remove(event["degree"])
            self._on_done(event["degree"], event)
            self._limits.restart()
            self._progress(f"degree {event['degree']}: built", done + 1, self._total)
        elif kind == "failed":
            error = OutputError if event["kind"] == "OutputError" else EngineError
            self._failure = error(event["message"])

    def finish(self, how: str, code: int, stderr: str) -> None:
        """Raise what ended the build, if anything did."""
        if self._failure is not None:
            ours = [line.strip() for line in stderr.splitlines() if line.startswith(_OP_PLUGIN_PREFIX)]
            if ours and isinstance(self._failure, EngineError):
                raise EngineError(f"{self._failure} | {' | '.join(dict.fromkeys(ours[-_OP_PLUGIN_LINES:]))}")
            raise self._failure
        if code == 0 and not self._left:
            return
        hint = " This is often a lack of memory." if how == how_it_ended(-signal.SIGKILL) else ""
        raise EngineError(
            f"The child process {how} while {self._stage}.{hint} Its log: {tail([*self._log, *stderr.splitlines()])}"
        )

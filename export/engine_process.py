"""The parent's side of a build: start the child, follow its events, turn whatever goes wrong into one error."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tocom.engine_store import SELF_REGISTER
from tocom.errors import EngineError, OutputError, TocomError
from tocom.export.engine_backend import BackendFound, link_libraries
from tocom.export.engine_options import BuildOptions

__all__ = ["Job", "build_engines"]

Progress = Callable[[str, int, int], None]
_WORKER = "tocom.export.engine_worker"
_MOST_LOG_CHARACTERS = 1200
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
    op_plugin: Path | None,
    timing_cache: Path,
    on_done: Callable[[int, dict[str, Any]], object],
    progress: Progress,
    worker: Sequence[str] = ("-m", _WORKER),
) -> None:
    """Build the jobs in one child process, in order, so that a native crash ends it and not this process.

    Args:
        backend: What builds.
        jobs: The engines; each appears whole or not at all.
        options: How.
        op_plugin: Library to load, or None for native lowering.
        timing_cache: File shared by the degrees; read if it is there, and written after each engine.
        on_done: Called after each engine with its degree and what the worker tells of it.
        progress: Called with what is being done, the steps done, and all steps.
        worker: Arguments that start the worker; tests put another one in.

    Raises:
        EngineError: TensorRT refused, or the child crashed; the message holds the last log lines.
        OutputError: An engine cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="tocom-build-") as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        links = folder / "links"
        links.mkdir()
        environment = link_libraries(backend, links)
        environment.pop(SELF_REGISTER, None)
        stderr = stack.enter_context((folder / "stderr.txt").open("w+b"))
        read_end, write_end = os.pipe()
        reader = stack.enter_context(os.fdopen(read_end, encoding="utf-8", errors="replace"))
        request = {
            "module": backend.module,
            "preload": [str(library) for library in backend.libraries],
            "op_plugin": None if op_plugin is None else str(op_plugin),
            "jobs": [
                {"degree": j.degree, "onnx": str(j.onnx), "engine": str(j.engine), "op_nodes": j.op_nodes} for j in jobs
            ],
            "options": options.to_json(),
            "timing_cache": str(timing_cache),
            "events": write_end,
        }
        try:
            child = subprocess.Popen(
                [sys.executable, *worker],
                stdin=subprocess.PIPE,
                stdout=stderr,
                stderr=stderr,
                env=environment,
                pass_fds=(write_end,),
            )
        finally:
            os.close(write_end)
        try:
            follower = _Follower(jobs, on_done, progress)
            with contextlib.suppress(BrokenPipeError):
                _send(child, request)
            for line in reader:
                follower.take(line)
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        stderr.seek(0)
        follower.finish(code, stderr.read().decode("utf-8", errors="replace"))


def _send(child: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    if child.stdin is not None:
        with child.stdin as stream:
            stream.write(json.dumps(request).encode())


class _Follower:
    """Reads the child's events and knows what to say when it ends."""

    def __init__(
        self, jobs: Sequence[Job], on_done: Callable[[int, dict[str, Any]], object], progress: Progress
    ) -> None:
        self._left = [job.degree for job in jobs]
        self._total = len(jobs)
        self._on_done = on_done
        self._progress = progress
        self._stage = "starting"
        self._log: list[str] = []
        self._failure: TocomError | None = None

    def take(self, line: str) -> None:
        """Handle one event. A line that is none, such as one cut off by a crash, counts as log."""
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
            self._progress(f"degree {event['degree']}: built", done + 1, self._total)
        elif kind == "failed":
            error = OutputError if event["kind"] == "OutputError" else EngineError
            self._failure = error(event["message"])

    def finish(self, code: int, stderr: str) -> None:
        """Raise what ended the build, if anything did."""
        if self._failure is not None:
            ours = [line.strip() for line in stderr.splitlines() if line.startswith(_OP_PLUGIN_PREFIX)]
            if ours and isinstance(self._failure, EngineError):
                raise EngineError(f"{self._failure} | {' | '.join(dict.fromkeys(ours[-_OP_PLUGIN_LINES:]))}")
            raise self._failure
        if code == 0 and not self._left:
            return
        lines = [*self._log, *stderr.splitlines()]
        tail = " | ".join(line.strip() for line in lines if line.strip())
        said = tail if len(tail) <= _MOST_LOG_CHARACTERS else f"... {tail[-_MOST_LOG_CHARACTERS:]}"
        how = f"ended with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        hint = " This is often a lack of memory." if code == -signal.SIGKILL else ""
        raise EngineError(f"The child process {how} while {self._stage}.{hint} Its log: {said or 'nothing'}")

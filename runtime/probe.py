"""Try a bundle's engines in a process of their own, so that one that crashes, hangs or eats memory ends only that.

An engine whose hash is right may still end the process that loads it: after an update of the driver, on a device whose
memory is failing, or where TensorRT or ONNX Runtime has a bug that this very model meets.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tocom import errors
from tocom.errors import EngineError, TocomError
from tocom.formats.bundle import Bundle
from tocom.system.child_process import LOOK_EVERY_S, Limits, how_it_ended, tail

__all__ = ["probe"]

_WORKER = ("-m", "tocom.runtime.probe")


def probe(
    bundle_path: Path | str,
    backend: str = "auto",
    *,
    degrees: Sequence[int] | None = None,
    threads: int | None = None,
    timeout_s: float = 120.0,
    memory_limit_bytes: int | None = None,
    worker: Sequence[str] = _WORKER,
) -> None:
    """Load each degree and answer one request with it, one after another, in a child process.

    Args:
        bundle_path: The bundle's folder.
        backend: A backend's name, or ``auto``.
        degrees: Degrees to try; None takes all.
        threads: CPU threads of one inference; None takes the usable physical cores.
        timeout_s: Seconds for all of it.
        memory_limit_bytes: Most memory that the child may hold in RAM; None sets no limit.
        worker: Arguments that start the child; tests put another one in.

    Raises:
        EngineError: The child crashed, took too long or too much; the degree and the end of its log are named.
        TocomError: What :meth:`Runtime.open` raises.
    """
    chosen = list(Bundle(bundle_path, verify=False).degrees if degrees is None else degrees)
    request = {"bundle": str(bundle_path), "backend": backend, "degrees": chosen, "threads": threads}
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen([sys.executable, *worker], stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            if child.stdin is not None:
                with contextlib.suppress(BrokenPipeError), child.stdin as stream:
                    stream.write(json.dumps(request).encode())
            ended = _wait(child, Limits(timeout_s, memory_limit_bytes))
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
        if ended is None and child.returncode == 0:
            return
        raise _error(str(bundle_path), log, ended or how_it_ended(child.returncode))


def _wait(child: subprocess.Popen[bytes], limits: Limits) -> str | None:
    """Wait for the child; return why it must be killed, or None when it ended by itself."""
    while True:
        try:
            child.wait(LOOK_EVERY_S)
            return None
        except subprocess.TimeoutExpired:
            if (why := limits.exceeded(child.pid)) is not None:
                return why


def _error(bundle: str, log: IO[bytes], how: str) -> TocomError:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", errors="replace").splitlines() if line.strip()]
    at = "starting"
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            said = json.loads(line)
            if "error" in said:
                return getattr(errors, str(said["error"]))(said["message"])  # type: ignore[no-any-return]
            at = f"degree {said['degree']}"
    said = tail(line for line in lines if not line.startswith("{"))
    return EngineError(
        f"The engines of {bundle} were tried in a process of their own, which {how} at {at}. They are not loaded here; "
        f"build or export them again. Its log: {said}"
    )


def _work() -> int:
    import numpy as np

    from tocom.runtime.runtime import Runtime

    request = json.loads(sys.stdin.read())
    try:
        for degree in request["degrees"]:
            print(json.dumps({"degree": degree}), flush=True)
            with Runtime.open(
                request["bundle"], request["backend"], degrees=[degree], threads=request["threads"], warm=False
            ) as runtime:
                engine = runtime._active.engines[degree]
                engine.run(np.zeros((runtime.bundle.batch[1], *runtime.bundle.image_shape), runtime.bundle.input_type))
    except TocomError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_work())

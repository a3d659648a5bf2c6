"""Running an engine that was just built, in a child process: does it give the bundle's reference answers?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tocom.formats.sidecar import Sidecar
from tocom.system.child_process import how_it_ended, tail

__all__ = ["Trial", "run_trial"]

# The runtime's own module: what serves is what tries. Parts meet through processes, so nothing of it is imported.
_WORKER = ("-m", "tocom.runtime.trial")


@dataclass(frozen=True)
class Trial:
    """What came of it.

    Attributes:
        is_right: Whether every answer was right, in the smallest and the largest batch.
        found: What is wrong, or the figures.
        difference: Largest difference; None where nothing finite was answered.
        allowed: Most that it may be.
        cosine: Smallest cosine.
        can_run: Whether another build could run here; False where the library does not support this GPU.
    """

    is_right: bool
    found: str
    difference: float | None = None
    allowed: float | None = None
    cosine: float | None = None
    can_run: bool = True


def run_trial(
    bundle: Path, folder: Path, sidecar: Sidecar, *, timeout_s: float | None, worker: Sequence[str] = _WORKER
) -> Trial:
    """Run an engine in a child process; one that crashes or hangs is wrong, and says so.

    Args:
        bundle: The bundle's folder.
        folder: The engine's.
        sidecar: What is about to be written beside it.
        timeout_s: Seconds for it.
        worker: Arguments that start the child; tests put another one in.
    """
    request = {"bundle": str(bundle), "folder": str(folder), "sidecar": sidecar.to_json()}
    try:
        done = subprocess.run(
            [sys.executable, *worker],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Trial(False, f"it did not answer within {timeout_s:g} s")
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        said = tail(done.stderr.splitlines())
        return Trial(False, f"the process that ran it {how_it_ended(done.returncode)}: {said}")
    return Trial(**json.loads(lines[-1]))

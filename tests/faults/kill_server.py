"""Runs jobs in forked processes and kills them: started once, it has imported everything, so a job starts at once.

Reads one JSON object per line, ``{"job", "folder", "after_s" | "at_event"}``, and answers with one: the exit status
(negative: the signal), the seconds, and how many file events the job made. ``after_s`` kills after that time,
``at_event`` just before the event of that number: an opening for writing, a rename, a removal below the folder, which
are the moments that matter and that random times rarely hit. Without either the job runs to its end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)  # before anything computes: a forked process cannot use its parent's threads

from small_vits import small_images, small_vit  # noqa: E402

from tocom.calibration import calibrate  # noqa: E402
from tocom.errors import TocomError  # noqa: E402
from tocom.export import export  # noqa: E402
from tocom.export.engines.builder import build  # noqa: E402
from tocom.formats.bundle import Bundle  # noqa: E402
from tocom.training.config import TrainingConfig  # noqa: E402
from tocom.training.trainer import train  # noqa: E402

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree")
STEPS = 8


def export_job(folder: Path) -> None:
    """Export a degree that the bundle there, if any, does not have."""
    path = folder / "bundle"
    degree = 2 if path.exists() and 0 in Bundle(path, verify=False).degrees else 0
    export(small_vit(side=32, depth=1), path, degrees=(degree,), check=False, overwrite=True)


def calibrate_job(folder: Path) -> None:
    calibrate(folder / "bundle", samples=20, threads=1)


def build_job(folder: Path) -> None:
    build(folder / "bundle", backend="tensorrt-rtx", lowering="native")


def train_job(folder: Path) -> None:
    model = small_vit(side=32, depth=1)
    config = TrainingConfig(groups=2, steps=STEPS, batch_size=2, seed=5, learning_rate=2e-3)
    images = list(small_images(model, 5))
    compensator = train(model, images, config, checkpoint=folder / "run.ckpt", checkpoint_every=1, resume=True)
    compensator.save(folder / "compensator.safetensors")


JOBS = {"export": export_job, "calibrate": calibrate_job, "build": build_job, "train": train_job}


def count_events(folder: Path, at_event: int | None, report: int) -> None:
    seen, below = 0, str(folder) + os.sep

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in EVENTS or not arguments or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if not os.fsdecode(arguments[0]).startswith(below):
            return
        seen += 1
        os.pwrite(report, str(seen).encode(), 0)
        if seen == at_event:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def child(request: dict[str, Any], report: int) -> None:
    os.environ["TOCOM_CACHE"] = f"{request['folder']}/cache"
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    count_events(Path(request["folder"]), request.get("at_event"), report)
    try:
        JOBS[request["job"]](Path(request["folder"]))
        os._exit(0)
    except TocomError as error:
        os.write(2, f"{request['job']}: {error}\n".encode())
        os._exit(1)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(2)


def main() -> None:
    report = os.memfd_create("events")
    for line in sys.stdin:
        request = json.loads(line)
        os.ftruncate(report, 0)
        begin = time.monotonic()
        process = os.fork()
        if not process:
            child(request, report)
        if "after_s" in request:
            time.sleep(request["after_s"])
            os.kill(process, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        answer = {
            "status": status,
            "seconds": time.monotonic() - begin,
            "events": int(os.pread(report, 20, 0) or b"0"),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

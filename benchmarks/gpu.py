"""Everything that needs an NVIDIA GPU, in one go, without a network: ``make gpu``; ``make gpu-rehearsal`` without one.

    python benchmarks/gpu.py [--rehearse] [--write]

Each step is a command with a limit; one that fails does not end the others. A table says what came out, and
``--write`` puts it into ``benchmarks/results/gpu-<name>.json``. The rehearsal runs every step that a CPU can, on the
emulated device and the driver in host memory, and collects the tests that need the GPU, so that a slip in them shows.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tocom.export.engines.backend import find_device
from tocom.system.cpu import cpu_identity

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
PYTEST = (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider")
KERNELS, DEVICE = "tests/export/op_plugin/test_plugin_device.py", "tests/runtime/backends/tensorrt"


@dataclass(frozen=True)
class Step:
    """One command on a GPU and what stands for it without one.

    Attributes:
        name: What it shows.
        command: On the GPU.
        rehearsal: Without.
        limit_s: Seconds that it may take.
        needs: A program or Python module, one of which must be there; a step without it is said to be left out.
    """

    name: str
    command: tuple[str, ...]
    rehearsal: tuple[str, ...]
    limit_s: float
    needs: tuple[str, ...] = ()


STEPS = (
    Step(
        "kernels against torch: types, widths, counts, ties",
        (*PYTEST, "-m", "gpu", KERNELS),
        (*PYTEST, "tests/export/op_plugin/test_plugin_emulation.py", "-k", "deit_small or 0-dtype0"),
        150,
    ),
    Step(
        "kernels under compute-sanitizer",
        ("compute-sanitizer", "--error-exitcode", "9", *PYTEST, "-m", "gpu", KERNELS, "-k", "equal_scores or refused"),
        (*PYTEST, "-m", "gpu", KERNELS, "--collect-only"),
        120,
        ("compute-sanitizer",),
    ),
    Step(
        "device contract on every layer, CUDA graphs",
        (*PYTEST, "-m", "gpu or not gpu", DEVICE),
        (*PYTEST, f"{DEVICE}/test_device_contract.py", f"{DEVICE}/test_engine_graphs.py"),
        120,
    ),
    Step(
        "kernel times against eager and compiled torch",
        (PYTHON, "benchmarks/op_plugin.py", "--quick"),
        (PYTHON, "benchmarks/op_plugin.py", "--rehearse"),
        120,
    ),
    Step(
        "engines against ONNX Runtime: batches in turn, equal rows, a busy stream",
        (PYTHON, "benchmarks/gpu_engines.py"),
        (
            *(PYTHON, "benchmarks/gpu_engines.py", "--backend", "onnxruntime"),
            *("--model", "test_vit3", "--degrees", "0,4"),
        ),
        180,
        ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"),
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What came of a step: ``passed``, ``failed`` or ``left out``, and its last line."""

    name: str
    outcome: str
    seconds: float
    said: str


def run(step: Step, *, rehearse: bool) -> Outcome:
    command = step.rehearsal if rehearse else step.command
    missing = not rehearse and step.needs and not any(map(is_here, step.needs))
    if missing:
        return Outcome(step.name, "left out", 0.0, f"needs {' or '.join(step.needs)}")
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=step.limit_s)
        lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
        # Where every test was skipped nothing was shown.
        passed = done.returncode == 0 and not re.fullmatch(r"\d+ skipped.*", lines[-1] if lines else "")
        outcome, said = "passed" if passed else "failed", lines[-1] if lines else "nothing"
        if not passed:
            print(f"--- {step.name}", *lines[-25:], done.stderr[-2000:], sep="\n", file=sys.stderr)
    except subprocess.TimeoutExpired:
        outcome, said = "failed", f"not done after {step.limit_s:.0f} s"
    return Outcome(step.name, outcome, round(time.perf_counter() - begin, 1), said)


def is_here(name: str) -> bool:
    return shutil.which(name) is not None or importlib.util.find_spec(name) is not None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="without a GPU")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results/")
    chosen = parser.parse_args()
    device = find_device()
    if device is None and not chosen.rehearse:
        print("make gpu needs an NVIDIA GPU, and none is found. Without one: make gpu-rehearsal.", file=sys.stderr)
        return 1
    where = device.slug if device is not None and not chosen.rehearse else "rehearsal, no GPU"
    table = Table("step", "outcome", "seconds", "said", title=where)
    outcomes = []
    for step in STEPS:
        outcomes.append(run(step, rehearse=chosen.rehearse))
        last = outcomes[-1]
        table.add_row(last.name, last.outcome, f"{last.seconds:.1f}", last.said[-80:])
    Console(width=150).print(table)
    if chosen.write and not chosen.rehearse:
        result = {
            "gpu": where,
            "host": {**cpu_identity(), "machine": platform.machine()},
            "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "steps": [asdict(outcome) for outcome in outcomes],
        }
        path = ROOT / "benchmarks" / "results" / f"gpu-{where}.json"
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if any(outcome.outcome == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Time and memory of exporting DeiT-S at many degrees, every one checked against torch under ONNX Runtime.

    python benchmarks/export_time.py [--degrees 0:16:1] [--write]

Weights are random, and so is the compensator: every degree has q and v of its own, as in use. 17 degrees must take at
most 60 seconds on two cores. The seconds are told apart by step: tracing (twice: dense and compressed), writing each
degree's graph, checking each degree. The peak is this process's resident set, importing torch included. ``--write``
puts the result into ``benchmarks/results/export.json`` and onto the page ``docs/benchmarks.md``.
Run it on an idle machine; it takes about a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = "deit_small_patch16_224"
LIMIT_SECONDS = 60.0
RESULTS = Path(__file__).parent / "results" / "export.json"


class Stopwatch:
    """Adds up the time between the exporter's progress lines, by their first word."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._step, self._begin = "", time.perf_counter()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if self._step:
            self.seconds[self._step] = self.seconds.get(self._step, 0.0) + now - self._begin
        self._step, self._begin = what.split()[0] if what else "", now


def measure(degrees: list[int]) -> dict[str, Any]:
    import torch

    from tocom.compensator.compensator import Compensator
    from tocom.compression.loading.model import load_model
    from tocom.export import export
    from tocom.system.cpu import cpu_identity

    load = round(os.getloadavg()[0], 1)
    loaded = load_model(MODEL, weights="random")
    compensator = Compensator.for_model(loaded.model, groups=max(1, *degrees))
    torch.manual_seed(0)
    for name, weight in compensator.named_parameters():
        if name.endswith("up"):
            torch.nn.init.normal_(weight, std=0.01)
    steps = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="tocom-export-") as folder:
        begin = time.perf_counter()
        bundle = export(loaded, Path(folder) / "bundle", degrees=degrees, compensator=compensator, progress=steps)
        seconds = time.perf_counter() - begin
        steps("", 0, 0)
        size = sum(file["size"] for file in bundle.manifest["files"].values())
        checks = [entry["check"] for entry in bundle.manifest["degrees"]]
    return {
        "model": MODEL,
        "degrees": degrees,
        "seconds": round(seconds, 2),
        "seconds_by_step": {step: round(value, 2) for step, value in steps.seconds.items()},
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
        "bundle_mb": round(size / 1e6, 1),
        "checked": sum(check is not None for check in checks),
        "passes": {f"at most {LIMIT_SECONDS:.0f} s": seconds <= LIMIT_SECONDS},
        "machine": {**cpu_identity(), "python": platform.python_version(), "torch": torch.__version__},
        "load_average_before": load,
    }


def main() -> None:
    from tocom.cli.options import parse_degrees

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--degrees", default="0:16:1")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    report = measure(list(parse_degrees(arguments.degrees)))
    text = json.dumps(report, indent=2) + "\n"
    if arguments.write:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(text, encoding="utf-8")
        import compare_page  # here: it brings matplotlib, which is not a part of the peak

        compare_page.PAGE.write_text(compare_page.page(RESULTS.parent), encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()

"""Memory and speed of all degrees resident with shared weights, against independent sessions.

    python benchmarks/runtime_memory.py BUNDLE [--rounds N] [--threads N]

Memory: proportional set size (PSS) of a process that loaded and ran (a) one degree, (b) all degrees in independent
sessions, (c) all degrees through the runtime; each in a process of its own. (c) must be at most 1.7 times (a).
Speed: (b) and (c) in one process, interleaved; the median over degrees of the ratio of medians must be at most 1.03.
Use a bundle of deit_small_patch16_224 with degrees 0,4,8,12,16 and no compensator on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measuring import pss_bytes

from tocom.formats.bundle import Bundle
from tocom.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend, OnnxRuntimeEngine


def images_for(bundle: Bundle) -> np.ndarray:
    channels, height, width = bundle.image_shape
    return np.random.default_rng(0).standard_normal((1, channels, height, width), np.float32)


def load(
    bundle: Bundle, degrees: list[int], *, share: bool, threads: int | None, cache: Path
) -> dict[int, OnnxRuntimeEngine]:
    backend = OnnxRuntimeBackend(bundle, threads=threads, share_weights=share, cache_folder=cache)
    backend.prepare(degrees)
    return {degree: backend.load(degree) for degree in degrees}


def measure(arguments: argparse.Namespace, which: str, cache: Path) -> float:
    """Return the PSS of a child process that holds what ``which`` says."""
    command = [sys.executable, __file__, str(arguments.bundle), "--child", which, "--cache", str(cache)]
    if arguments.threads is not None:
        command += ["--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def child(arguments: argparse.Namespace) -> None:
    bundle = Bundle(arguments.bundle)
    degrees = list(bundle.degrees)[:1] if arguments.child == "one" else list(bundle.degrees)
    engines = load(bundle, degrees, share=arguments.child == "shared", threads=arguments.threads, cache=arguments.cache)
    images = images_for(bundle)
    for _ in range(3):
        for engine in engines.values():
            engine.run(images)
    print(pss_bytes() / 1e6)


def speed(arguments: argparse.Namespace, cache: Path) -> dict[str, Any]:
    bundle = Bundle(arguments.bundle)
    degrees, images = list(bundle.degrees), images_for(bundle)
    sets = {
        share: load(bundle, degrees, share=share, threads=arguments.threads, cache=cache) for share in (False, True)
    }
    times: dict[tuple[bool, int], list[float]] = {(share, degree): [] for share in sets for degree in degrees}
    for turn in range(arguments.rounds + 5):
        for degree in degrees:
            for share in (turn % 2 == 0, turn % 2 == 1):
                start = time.perf_counter()
                sets[share][degree].run(images)
                if turn >= 5:
                    times[share, degree].append((time.perf_counter() - start) * 1e3)
    ratios = {degree: median(times[True, degree]) / median(times[False, degree]) for degree in degrees}
    return {
        "shared_over_independent": round(median(ratios.values()), 4),
        "per_degree": {str(degree): round(ratio, 4) for degree, ratio in ratios.items()},
        "shared_p50_ms": {str(degree): round(median(times[True, degree]), 3) for degree in degrees},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--child", choices=("one", "independent", "shared"), help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        # Packing happens once per machine, in a process that then ends: it is not a part of what serving needs.
        measure(arguments, "shared", cache)
        pss = {which: measure(arguments, which, cache) for which in ("one", "independent", "shared")}
        report: dict[str, Any] = {
            "model": Bundle(arguments.bundle).model_name,
            "degrees": list(Bundle(arguments.bundle).degrees),
            "pss_mb": {which: round(value, 1) for which, value in pss.items()},
            "independent_over_one": round(pss["independent"] / pss["one"], 3),
            "shared_over_one": round(pss["shared"] / pss["one"], 3),
            **speed(arguments, cache),
        }
    report["passes"] = {
        "PSS at most 1.7 times one degree": report["shared_over_one"] <= 1.7,
        "at most 3 % slower": report["shared_over_independent"] <= 1.03,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

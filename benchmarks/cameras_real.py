"""Several cameras on this machine's own device: the policy beside pinned degrees, at a rate that one of them can hold.

    python benchmarks/cameras_real.py mine/bundle --cameras 2,4 --seconds 8

The cameras give one prepared image in a rhythm; each answer is due one period after its frame. The period is what all
cameras take, one after another, at the middle degree, and an eighth more. A frame that is dropped, or answered late,
missed its deadline.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tocom.formats.pixels import random_images
from tocom.runtime import Runtime

ROOM = 1.125


def camera(images: np.ndarray, begin: float, period_s: float, frames: int) -> Iterator[np.ndarray]:
    """Give an image in a rhythm."""
    for index in range(frames):
        time.sleep(max(begin + index * period_s - time.monotonic(), 0.0))
        yield images


def serve(runtime: Runtime, images: np.ndarray, *, cameras: int, staggered: bool, period_s: float, seconds: float,
          degree: int | None) -> dict[str, Any]:  # fmt: skip
    """Return what came of all frames."""
    begin, frames = time.monotonic() + 0.1, round(seconds / period_s)
    late = period_s / cameras if staggered else 0.0
    sources = {str(place): camera(images, begin + place * late, period_s, frames) for place in range(cameras)}
    taken: Counter[int] = Counter()
    met = 0
    for frame in runtime.streams(sources, budget_ms=period_s * 1e3, degree=degree):
        taken[frame.result.degree] += 1
        met += frame.result.met_budget
    answered = sum(taken.values())
    return {
        "met": met / (cameras * frames),
        "mean_degree": sum(each * count for each, count in taken.items()) / answered,
        "degrees": {str(each): count for each, count in sorted(taken.items())},
        "frames": cameras * frames,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cameras", default="2,4")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = []
    with Runtime.open(options.bundle, options.backend) as runtime:
        images = random_images(runtime.bundle.manifest["input"], 1, np.random.default_rng(0))
        times: dict[int, list[float]] = {degree: [] for degree in runtime.degrees}
        for _ in range(15):
            for degree, each in times.items():
                each.append(runtime.infer(images, degree=degree).latency_ms)
        median = {degree: float(np.median(each)) for degree, each in times.items()}
        middle = runtime.degrees[len(runtime.degrees) // 2]
        print("median ms by degree:", {degree: round(ms, 1) for degree, ms in median.items()}, flush=True)
        for cameras in map(int, options.cameras.split(",")):
            for staggered in (False, True):
                period_s = cameras * median[middle] * ROOM / 1e3
                ways: dict[str, dict[str, Any]] = {}
                for degree in (None, *(each for each in runtime.degrees if each >= middle)):
                    ways["policy" if degree is None else str(degree)] = serve(
                        runtime,
                        images,
                        cameras=cameras,
                        staggered=staggered,
                        period_s=period_s,
                        seconds=options.seconds,
                        degree=degree,
                    )
                found.append({"cameras": cameras, "staggered": staggered, "fps": 1 / period_s, "ways": ways})
                shown = "; ".join(f"{k} {v['met']:.1%} at degree {v['mean_degree']:.1f}" for k, v in ways.items())
                print(f"{cameras} cameras, {'staggered' if staggered else 'in phase'}: {shown}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps({"median_ms": median, "runs": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

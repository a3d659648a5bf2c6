"""Several cameras on this machine's own device: the policy beside pinned degrees, at a rate that one of them can hold.

    python benchmarks/cameras_real.py mine/bundle --cameras 2,4 --seconds 2.5 --rounds 3

The cameras give one prepared image in a rhythm; each answer is due one period after its frame. The period is what all
cameras take, one after another, at the middle degree, times ``--room``. A frame that is dropped, or answered late,
missed its deadline. The ways take turns, a round after the other: a machine's speed changes while it is measured. So
each round says what the inferences took, relative to the medians just before, and what others used of the CPUs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine

from tocom.calibration.device_state.linux import LinuxReader
from tocom.formats.pixels import random_images
from tocom.runtime import Runtime


@dataclass(frozen=True)
class Round:
    """What came of the frames of one round.

    Attributes:
        taken: How many frames each degree answered.
        met: How many frames met their deadlines.
        slowness: Quartiles of the inferences' times over their degrees' medians before the rounds.
        others: Shares of the CPUs' time that other programs used, and that the host kept.
    """

    taken: Counter[int]
    met: int
    slowness: list[float]
    others: dict[str, float]


def camera(images: np.ndarray, begin: float, period_s: float, frames: int) -> Iterator[np.ndarray]:
    """Give an image in a rhythm."""
    for index in range(frames):
        time.sleep(max(begin + index * period_s - time.monotonic(), 0.0))
        yield images


def serve(
    runtime: Runtime, images: np.ndarray, degree: int | None, *, cameras: int, staggered: bool, period_s: float,
    seconds: float, median_ms: dict[int, float],
) -> Round:  # fmt: skip
    """Serve all cameras for some seconds by the policy, or at a pinned degree."""
    begin, frames = time.monotonic() + 0.1, round(seconds / period_s)
    late = period_s / cameras if staggered else 0.0
    sources = {str(number): camera(images, begin + number * late, period_s, frames) for number in range(cameras)}
    device = LinuxReader()
    results = [each.result for each in runtime.streams(sources, budget_ms=period_s * 1e3, degree=degree)]
    state = device.read()
    slowness = [(each.latency_ms - each.queue_ms) / median_ms[each.degree] for each in results]
    return Round(
        Counter(each.degree for each in results),
        sum(each.met_budget for each in results),
        [round(float(value), 3) for value in np.percentile(slowness, (25, 50, 75))],
        {name: state[name] for name in ("other_cpu_share", "stolen_cpu_share") if name in state},
    )


def summary(rounds: list[Round], frames: int) -> dict[str, Any]:
    """Return what came of the frames of all rounds, ``frames`` in each."""
    taken = sum((each.taken for each in rounds), Counter[int]())
    return {
        "met": sum(each.met for each in rounds) / (frames * len(rounds)),
        "mean_degree": sum(each * count for each, count in taken.items()) / taken.total(),
        "degrees": {str(each): count for each, count in sorted(taken.items())},
        "frames": frames * len(rounds),
        "rounds": [{"met": each.met / frames, "slowness": each.slowness, **each.others} for each in rounds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cameras", default="2,4")
    parser.add_argument("--seconds", type=float, default=2.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--room", type=float, default=1.125)
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
        for cameras, staggered in itertools.product(map(int, options.cameras.split(",")), (False, True)):
            period_s = cameras * median[middle] * options.room / 1e3
            rounds: dict[int | None, list[Round]] = {degree: [] for degree in (None, *runtime.degrees)}
            for _ in range(options.rounds):
                for degree, served in rounds.items():
                    served.append(
                        serve(runtime, images, degree, cameras=cameras, staggered=staggered, period_s=period_s,
                              seconds=options.seconds, median_ms=median)
                    )  # fmt: skip
            frames = cameras * round(options.seconds / period_s)
            ways = {
                "policy" if degree is None else str(degree): summary(each, frames) for degree, each in rounds.items()
            }
            good = [degree for degree in runtime.degrees if ways[str(degree)]["met"] >= 0.99]
            best = min(good, default=None)
            found.append(
                {"cameras": cameras, "staggered": staggered, "fps": 1 / period_s, "best_pinned": best, "ways": ways}
            )
            shown = "; ".join(f"{k} {v['met']:.1%} at degree {v['mean_degree']:.1f}" for k, v in ways.items())
            print(
                f"{cameras} cameras, {'staggered' if staggered else 'in phase'}, {1 / period_s:.1f} fps: {shown}",
                flush=True,
            )
    if options.out is not None:
        report = {
            "model": runtime.bundle.manifest["model"]["name"],
            "machine": machine(),
            "median_ms": median,
            "room": options.room,
            "runs": found,
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

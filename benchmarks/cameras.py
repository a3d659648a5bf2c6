"""Several cameras on one device, simulated: the policy beside pinned degrees and the best that one could have done.

    python benchmarks/cameras.py --out benchmarks/results/cameras.json

No model runs: the runtime's own controller and load decide at the times of a simulated clock. An inference takes what
a device would: its degree's median times noise and slow swings that all degrees share. Of each camera the newest frame
waits; a frame that is replaced, or answered late, missed its deadline, one period after its arrival. The oracle knows
every inference's time beforehand, meets as many deadlines as can be met, and then is as accurate as can be (dynamic
programming over the finish time in steps of a quarter millisecond, in order of arrival). Where batches pay, each
further image of one is assumed to cost ``MORE`` of the first, as on a GPU that one image does not fill; the policy then
answers frames together, the pinned degrees and the oracle one by one.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tocom.formats.profile import Latency
from tocom.runtime.policy.controller import Controller
from tocom.runtime.policy.load import Load, Together
from tocom.runtime.policy.together import Asking, plan_together

# Medians relative to the dense model and accuracies of a DeiT-S with its compensator, as docs/results.md measures them.
COST = {0: 1.0, 4: 0.86, 8: 0.72, 12: 0.59, 16: 0.48}
ACCURACY = {0: 0.798, 4: 0.796, 8: 0.792, 12: 0.783, 16: 0.763}
NOISE = 0.02
SWING = 0.02
STEP_S = 0.25e-3
MORE = 0.5


@dataclass(frozen=True)
class Run:
    """What one way of choosing came to.

    Attributes:
        met: Share of all frames answered within a period of their arrival.
        accuracy: Mean accuracy of the degrees of the answered frames.
        right: Mean over all frames of the accuracy where the deadline was met, else 0.
    """

    met: float
    accuracy: float
    right: float


def speeds(count: int, generator: np.random.Generator, *, disturbed: bool = False) -> NDArray[np.float64]:
    """Return the factor on each inference's time: lognormal noise, and a swing of the device over hundreds of them.

    Disturbed, every other stretch of 25 to 100 inferences has another program on the device: half of them take half as
    long again.
    """
    noise = np.exp(NOISE * generator.standard_normal(count))
    swing = np.exp(SWING * np.sin(np.arange(count) / generator.uniform(150, 400) + generator.uniform(0, 6)))
    if disturbed:
        ends = np.cumsum(generator.integers(25, 100, count))
        busy = np.searchsorted(ends, np.arange(count), side="right") % 2 == 1
        noise[busy & (generator.random(count) < 0.5)] *= 1.5
    return noise * swing


def arrivals(cameras: int, frames: int, period_s: float, *, staggered: bool) -> list[tuple[float, int]]:
    """Return when which camera gives a frame, in order."""
    late = period_s / cameras if staggered else 1e-6
    return sorted((beat * period_s + number * late, number) for beat in range(frames) for number in range(cameras))


def serve(
    events: list[tuple[float, int]],
    cameras: int,
    period_s: float,
    base_ms: float,
    speed: NDArray[np.float64],
    pinned: int | None,
    *,
    batches: bool = False,
) -> Run:
    """Serve all frames by the policy, or at a pinned degree."""
    load = Load()
    base = {degree: base_ms * cost for degree, cost in COST.items()}

    def profile(batch: int) -> dict[int, Latency]:
        times = {degree: ms * (1 + MORE * (batch - 1)) for degree, ms in base.items()}
        return {d: Latency(400, ms, ms * 1.026, ms * 1.033, ms * 1.047) for d, ms in times.items()}

    sizes = [batch for batch in (2, 4, 8) if batches and batch <= cameras]
    controller = Controller(profile(1), ACCURACY, batched={batch: profile(batch) for batch in sizes})
    for camera in range(cameras):
        load.expect(camera, period_s, period_s)
    slots: dict[int, tuple[float, float, int]] = {}  # arrival, when the turn is due, token
    now, position, turn = 0.0, 0, 0
    met, taken = 0, []

    def read(until: float) -> None:
        nonlocal position
        while position < len(events) and events[position][0] <= until:
            arrival, camera = events[position]
            position += 1
            token = load.arrive(camera, arrival, arrival + period_s)
            due = arrival + period_s
            if camera in slots:
                load.start(slots[camera][2])
                due = slots[camera][1]
            slots[camera] = arrival, due, token

    while True:
        read(now)
        if not slots:
            if position == len(events):
                break
            now = events[position][0]
            continue
        waiting = sorted(slots, key=lambda each: slots[each][1])
        asking = [Asking(camera, slots[camera][2], slots[camera][0] + period_s) for camera in waiting]
        count = 1
        if batches and pinned is None:
            count, wait_until = plan_together(asking, now, load, controller)
            if wait_until is not None:
                following = events[position][0] if position < len(events) else wait_until
                now = max(min(following, wait_until), now) + 1e-7
                continue
        asking = asking[:count]
        for each in asking:
            del slots[each.source]
            load.start(each.token)
        first_due = min(each.due for each in asking)
        degree = pinned
        if degree is None:
            asker = Together(each.source for each in asking) if count > 1 else asking[0].source
            left_ms = (first_due - now) * 1e3
            share = load.share(asker, now, left_ms, controller, count)
            degree = controller.decide(share.ms, count, shared=share.shared).degree
        took_ms = base[degree] * (1 + MORE * (count - 1)) * speed[turn]
        turn += 1
        now += took_ms / 1e3
        controller.observe(degree, took_ms, now <= first_due, count, pinned=pinned is not None)
        for each in asking:
            in_time = now <= each.due
            met += in_time
            taken.append((degree, in_time))
    accuracies = [ACCURACY[degree] for degree, _ in taken]
    right = sum(ACCURACY[degree] for degree, in_time in taken if in_time)
    return Run(met / len(events), float(np.mean(accuracies)), right / len(events))


def oracle(
    events: list[tuple[float, int]], period_s: float, base_ms: float, speed: NDArray[np.float64]
) -> tuple[float, float]:
    """Return the share of deadlines met and the accuracy over all frames of who knows the future."""
    # Best sum by how long after this frame's arrival the device is busy, in steps; a missed frame costs more than any
    # choice of degrees could bring.
    width = round(period_s / STEP_S) + 1
    best = np.full(width, -np.inf)
    best[0] = 0.0
    bonus = 1e6
    for turn, (arrival, _) in enumerate(events):
        after = best.copy()  # not answered at all
        for degree, cost in COST.items():
            took = int(np.ceil(base_ms * cost * speed[turn] / 1e3 / STEP_S))
            if took < width:
                after[took:] = np.maximum(after[took:], best[: width - took] + bonus + ACCURACY[degree])
        following = events[turn + 1][0] if turn + 1 < len(events) else arrival
        gone = int((following - arrival) / STEP_S)
        best = np.full(width, -np.inf)
        best[: width - gone] = after[gone:]
        best[0] = max(best[0], after[: gone + 1].max())
    total = float(best.max())
    met = int(total // bonus)
    return met / len(events), (total - bonus * met) / len(events)


def compare(
    cameras: int,
    *,
    staggered: bool,
    room: float,
    seeds: int,
    seconds: float,
    batches: bool = False,
    disturbed: bool = False,
) -> dict[str, object]:
    """Compare all ways for some cameras.

    Args:
        cameras: How many.
        staggered: They take turns, rather than all at once.
        room: What the period leaves of the time that all cameras take at degree 8.
        seeds: Repetitions, each with other times.
        seconds: Of each camera.
        batches: Let the policy answer frames together.
        disturbed: Another program comes and goes.
    """
    base_ms = 30.0
    period_s = cameras * base_ms * COST[8] * room / 1e3
    frames = round(seconds / period_s)
    events = arrivals(cameras, frames, period_s, staggered=staggered)
    ways: dict[str, list[Run]] = {"policy": [], **{str(degree): [] for degree in COST}}
    best = []
    for seed in range(seeds):
        speed = speeds(len(events), np.random.default_rng(seed), disturbed=disturbed)
        for way, runs in ways.items():
            pinned = None if way == "policy" else int(way)
            runs.append(serve(events, cameras, period_s, base_ms, speed, pinned, batches=batches))
        best.append(oracle(events, period_s, base_ms, speed))
    mean = {
        way: {
            "met": float(np.mean([run.met for run in runs])),
            "accuracy": float(np.mean([run.accuracy for run in runs])),
            "right": float(np.mean([run.right for run in runs])),
            "least_met": min(run.met for run in runs),
        }
        for way, runs in ways.items()
    }
    good = [way for way, each in mean.items() if way != "policy" and each["met"] >= 0.99]
    return {
        "cameras": cameras,
        "staggered": staggered,
        "batches": batches,
        "disturbed": disturbed,
        "fps": 1 / period_s,
        "ways": mean,
        "best_pinned": max(good, key=lambda way: mean[way]["accuracy"]) if good else None,
        "oracle": {"met": float(np.mean([met for met, _ in best])), "right": float(np.mean([a for _, a in best]))},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    found = []
    for cameras in (2, 4, 8):
        for staggered in (False, True):
            for room, batches, disturbed in (
                (1.02, False, False),
                (1.1, False, False),
                (1.18, False, False),
                (1.02, True, False),
                (1.12, False, True),
                (1.3, False, True),
            ):
                each = compare(
                    cameras,
                    staggered=staggered,
                    room=room,
                    seeds=options.seeds,
                    seconds=options.seconds,
                    batches=batches,
                    disturbed=disturbed,
                )
                found.append({**each, "room": room})
                policy, pinned = each["ways"]["policy"], each["best_pinned"]  # type: ignore[index]
                beside = each["ways"][pinned] if pinned else None  # type: ignore[index]
                print(
                    f"{cameras} cameras, {'staggered' if staggered else 'in phase'}"
                    f"{', batches pay' if batches else ''}{', disturbed' if disturbed else ''}, "
                    f"{each['fps']:.1f} fps: policy met "
                    f"{policy['met']:.2%} (least {policy['least_met']:.2%}) at {policy['accuracy']:.4f}; "
                    f"best pinned {pinned}: "
                    + (f"{beside['met']:.2%} at {beside['accuracy']:.4f}" if beside else "none")
                    + f"; oracle {each['oracle']['met']:.2%}, {each['oracle']['right']:.4f}",  # type: ignore[index]
                    flush=True,
                )
    if options.out is not None:
        content = {"machine": platform.machine(), "seeds": options.seeds, "seconds": options.seconds, "runs": found}
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

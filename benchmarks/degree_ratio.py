"""What a degree takes of the dense model's time, beside what it takes of its multiply-accumulates.

    python benchmarks/degree_ratio.py BUNDLE [--degree 16] [--batch 1 8] [--backend NAME] [--seconds 60] [--json]

Both degrees of one bundle take turns in one run, through ``Runtime.infer``; the ratio is the median over the rounds of
the ratio within a round, with its 95 % interval. What matching and starting many small kernels cost stands above the
MAC ratio. Use a bundle that takes the batches, on an idle machine; times do not depend on the weights:

    tocom export --model deit_small_patch16_224 --weights random --degrees 0,16 --batch 1:1:8 --out BUNDLE
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import interleave, machine, median_interval, paired_ratio

from tocom.runtime import Runtime


def measured(runtime: Runtime, degree: int, batch: int, seconds: float) -> dict[str, Any]:
    """Return times and ratios of one batch size."""
    images = np.random.default_rng(0).standard_normal((batch, *runtime.bundle.image_shape), np.float32)
    times = interleave(
        {str(each): partial(runtime.infer, images, degree=each) for each in (0, degree)},
        seconds=seconds,
        most_rounds=1000,
    )
    ratio, low, high = paired_ratio(times[str(degree)], times["0"])
    macs = [runtime.bundle.degrees[each].macs for each in (degree, 0)]
    return {
        "batch": batch,
        "rounds": len(times["0"]),
        "dense_ms": round(median_interval(times["0"])[0], 2),
        "degree_ms": round(median_interval(times[str(degree)])[0], 2),
        "time_ratio": [round(value, 4) for value in (ratio, low, high)],
        "mac_ratio": round(macs[0] / macs[1], 4),
        "over_mac_ratio": round(ratio / (macs[0] / macs[1]), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--degree", type=int, default=16)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--seconds", type=float, default=60.0, help="per batch size")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with Runtime.open(chosen.bundle, chosen.backend, degrees=(0, chosen.degree)) as runtime:
        rows = [measured(runtime, chosen.degree, batch, chosen.seconds) for batch in chosen.batch]
        report = {"model": runtime.bundle.model_name, "backend": runtime.backend.name, "rows": rows}
    if chosen.json:
        print(json.dumps({**report, "machine": machine()}, indent=2))
        return
    for row in rows:
        ratio, low, high = row["time_ratio"]
        print(
            f"batch {row['batch']}: {row['degree_ms']} ms of {row['dense_ms']} ms, {ratio:.3f} "
            f"[{low:.3f}, {high:.3f}], {row['over_mac_ratio']:.2f} times the MAC ratio {row['mac_ratio']:.3f} "
            f"({row['rounds']} rounds)"
        )


if __name__ == "__main__":
    main()

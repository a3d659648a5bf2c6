"""What comparing with the reference answers costs when a bundle is opened: against zeros run in their place.

    python benchmarks/open_checked.py BUNDLE [--rounds 20]

Both ways open every degree on ONNX Runtime's CPU backend, in turns and alternating order, with a warm file cache, the
packed weights at hand and a saved profile, and pay every degree's first-call costs. ``check_answers=False`` runs zeros
twice, as ``Runtime.open`` did before it compared. The ratio is the median of the rounds' ratios, with the sign test's
95 % interval. It also says what the references add to the bundle.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from tocom.calibration.latency.quantiles import interval_ranks
from tocom.formats.bundle import Bundle
from tocom.formats.references import REFERENCES_NAME
from tocom.runtime import Runtime


def seconds_to_open(bundle: Path, profile: object, *, check_answers: bool) -> float:
    begin = time.perf_counter()
    with Runtime.open(bundle, "onnxruntime", profile=profile, check_answers=check_answers):
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TOCOM_CACHE"] = cache
        with Runtime.open(arguments.bundle, "onnxruntime") as runtime:
            profile = runtime.profile
        samples: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(arguments.rounds):
            for checked in (True, False) if turn % 2 else (False, True):
                samples[checked].append(seconds_to_open(arguments.bundle, profile, check_answers=checked))
    ratios = np.array(samples[True]) / np.array(samples[False])
    ranks = interval_ranks(len(ratios), 0.5)
    interval = None if ranks is None else [float(np.sort(ratios)[rank - 1]) for rank in ranks]
    files = Bundle(arguments.bundle).manifest["files"]
    result = {
        "bundle": str(arguments.bundle),
        "batch": Bundle(arguments.bundle).batch,
        "rounds": arguments.rounds,
        "checked_seconds": float(np.median(samples[True])),
        "zeros_seconds": float(np.median(samples[False])),
        "ratio": float(np.median(ratios)),
        "ratio_95_interval": interval,
        "references_bytes": files[REFERENCES_NAME]["size"],
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""What ONNX Runtime's fusions cost or bring on this CPU, one left out at a time.

    python benchmarks/fusions.py BUNDLE [--batch 1] [--degrees 0 16] [--threads 1] [--rounds 60]

Sessions of the same ONNX file take turns, each with other fusions left out. On one thread the processor time of the
thread is taken, which other load disturbs little; on more, the wall clock, for an idle machine. A ratio is the median
over rounds of the ratio to the session with every fusion. ``_SLOWER_FUSIONS`` of
``tocom.system.onnxruntime_session`` follows from these figures.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tocom.formats.bundle import Bundle

VARIANTS = {
    "every fusion": (),
    "without bias + gelu": ("BiasGeluFusion",),
    "without skip + norm": ("SkipLayerNormFusion",),
    "without both": ("BiasGeluFusion", "SkipLayerNormFusion"),
}


def session(path: Path, threads: int, left_out: tuple[str, ...]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("optimization.disable_specified_optimizers", ";".join(left_out))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--degrees", type=int, nargs="+", default=[0, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    chosen = parser.parse_args()
    bundle = Bundle(chosen.bundle)
    channels, height, width = bundle.image_shape
    generator = np.random.default_rng(0)
    images = generator.standard_normal((chosen.batch, channels, height, width), dtype=np.float32)
    clock = time.thread_time if chosen.threads == 1 else time.perf_counter
    for degree in chosen.degrees:
        sessions = {name: session(bundle.onnx_path(degree), chosen.threads, out) for name, out in VARIANTS.items()}
        taken: dict[str, list[float]] = {name: [] for name in sessions}
        for number in range(chosen.rounds + 2):
            for name, each in sessions.items():
                begin = clock()
                each.run(None, {"images": images})
                if number > 1:
                    taken[name].append((clock() - begin) * 1e3)
        whole = taken["every fusion"]
        for name, values in taken.items():
            ratio = statistics.median(one / other for one, other in zip(values, whole, strict=True))
            print(f"degree {degree:2d}  {name:20s} {statistics.median(values):8.2f} ms  {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()

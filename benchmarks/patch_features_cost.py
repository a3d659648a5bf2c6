"""What ``--patch-features`` costs: the same degrees with and without, in turns, on this machine's CPU at batch 1.

    python benchmarks/patch_features_cost.py --only export     # two bundles into build/patch-features/
    python benchmarks/patch_features_cost.py                   # two minutes, the machine left alone

Writes ``benchmarks/results/patch_features.json``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from measuring import RESULTS, ROOT, interleave, machine

from tocom import load_model
from tocom.export import export
from tocom.system.files import write_json

FOLDER, RESULT = ROOT / "build" / "patch-features", RESULTS / "patch_features.json"
MODELS = {"deit_small_patch16_224": {}, "vit_small_patch16_dinov3": {"image_size": 224}}
DEGREES = (0, 8, 16)


def bundle_path(model: str, patches: bool) -> Path:
    return FOLDER / f"{model}-{'patches' if patches else 'plain'}"


def make() -> None:
    for name, options in MODELS.items():
        loaded = load_model(name, weights="random", **options)
        for patches in (False, True):
            if not bundle_path(name, patches).exists():
                path = bundle_path(name, patches)
                export(loaded, path, degrees=DEGREES, patch_features=patches, check=False)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=["export"], help="do this alone")
    make()
    if options.parse_args().only:
        return
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    rows = []
    for name in MODELS:
        for degree in DEGREES:
            runs = {
                kind: partial(
                    session(bundle_path(name, kind == "patches") / f"degree-{degree:02d}.onnx").run,
                    None,
                    {"images": image},
                )
                for kind in ("plain", "patches")
            }
            timed = interleave(runs, seconds=9)
            pairs = [after / before - 1 for before, after in zip(timed["plain"], timed["patches"], strict=True)]
            rows.append(
                {
                    "model": name,
                    "degree": degree,
                    "plain_ms": statistics.median(timed["plain"]),
                    "patches_ms": statistics.median(timed["patches"]),
                    "rise": statistics.median(pairs),
                    "pairs": len(pairs),
                }
            )
            print(rows[-1], flush=True)
    write_json(RESULT, {"machine": machine(), "backend": "onnxruntime, 2 threads, batch 1", "rows": rows})


if __name__ == "__main__":
    sys.exit(main())

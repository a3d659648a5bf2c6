"""Latency over degrees on a GPU, per family of schedules and batch, as the runtime answers it.

    python benchmarks/gpu_latency.py [--models deit_small_patch16_224,vit_base_patch16_384] [--precision fp16]

Random weights, TensorRT-RTX or TensorRT with the op plugin. All engines of a model stay loaded and take turns, so that
figures of one round are pairs (see ``measuring.interleave``); an inference is what ``Runtime.infer`` takes with images
in host memory, copies included. Writes ``benchmarks/results/gpu-latency-<gpu>.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, interleave, machine, median_interval, paired_ratio

from tocom.compression.loading.model import load_model
from tocom.compression.surgery import input_tokens
from tocom.export import build, export
from tocom.export.engines.backend import find_backend, find_device
from tocom.formats.families import EVERY
from tocom.runtime import Runtime
from tocom.system.files import write_json

BATCHES = (1, 8, 32)
SHARES = (0.5, 0.75, 1.0)  # of the degree that removes all tokens over all blocks


def measure(name: str, backend: str, precision: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Return the rows of a model: per family and degree layers, per batch milliseconds and the ratio to degree 0."""
    model = load_model(name, weights="random").model
    depth = len(model.blocks)
    degrees = [0, *(int(share * input_tokens(model) / depth) for share in SHARES)]
    spaced = ["spaced:" + ",".join(str(block) for block in range(1, depth, step)) for step in (3, 4)]
    opened, rows, begin = {}, {}, time.perf_counter()
    for family in (EVERY, *spaced):
        bundle = export(
            model,
            folder / f"{name}-{len(opened)}",
            degrees=degrees if family == EVERY else degrees[1:],
            family=family,
            batch=(1, 1, BATCHES[-1]),
            precision=precision,
            check=False,
        )
        records = build(bundle.path, backend=backend).records
        runtime = Runtime.open(bundle.path, backend, check_answers=False)
        for degree in bundle.degrees:
            opened[family, degree] = runtime
            record = records[degree]
            rows[family, degree] = {"layers": record.layers, "op_plugin_layers": record.op_plugin_layers, "batches": []}
        print(f"{name} {family}: {time.perf_counter() - begin:.0f} s", flush=True)
    draw = np.random.default_rng(0)
    for batch in BATCHES:
        images = draw.standard_normal((batch, *opened[EVERY, 0].bundle.image_shape), np.float32)
        times = interleave(
            {
                (family, degree): partial(runtime.infer, images, degree=degree)
                for (family, degree), runtime in opened.items()
            },
            seconds=seconds,
            most_rounds=100,
        )
        for key, taken in times.items():
            ratio = paired_ratio(taken, times[EVERY, 0])
            rows[key]["batches"].append(
                {"batch": batch, "rounds": len(taken), "ms": median_interval(taken), "ratio": ratio}
            )
            print(f"{name} {key} batch {batch}: {np.median(taken):.3f} ms, {ratio[0]:.3f} of dense", flush=True)
    for runtime in {id(each): each for each in opened.values()}.values():
        runtime.close()
    return {
        "model": name,
        "precision": precision,
        "rows": [{"family": family, "degree": degree, **row} for (family, degree), row in rows.items()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="deit_small_patch16_224,vit_base_patch16_384")
    parser.add_argument("--precision", default="fp16", choices=("fp32", "fp16"))
    parser.add_argument("--seconds", type=float, default=15, help="per model and batch")
    chosen = parser.parse_args()
    device = find_device()
    if device is None:
        raise SystemExit("This benchmark needs an NVIDIA GPU, and none is found.")
    found = find_backend("auto")
    result: dict[str, Any] = {
        "gpu": device.slug,
        "backend": f"{found.name} {found.version}",
        "machine": machine(),
        "models": [],
    }
    with tempfile.TemporaryDirectory(prefix="tocom-gpu-") as folder:
        for name in chosen.models.split(","):
            result["models"].append(measure(name, found.name, chosen.precision, chosen.seconds, Path(folder)))
            write_json(RESULTS / f"gpu-latency-{device.slug}.json", result)


if __name__ == "__main__":
    main()

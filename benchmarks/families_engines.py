"""What DeiT-S at degree 16 becomes with each family: layers and op plugin layers of its engine, latency on this CPU.

    python benchmarks/families_engines.py --only layers      # TensorRT-RTX builds; no GPU needed
    python benchmarks/families_engines.py --only latency     # four minutes, the machine left alone

Latency is paired: all families take turns (see ``measuring.interleave``), under ONNX Runtime and OpenVINO, at batch 1
and 8; ratios are to ``every``. Each part updates its own half of ``benchmarks/results/families-engines.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, interleave, machine, median_interval, paired_ratio

from tocom.compression.loading.model import load_model
from tocom.export import build, export
from tocom.formats.bundle import Bundle
from tocom.formats.families import EVERY
from tocom.runtime import Runtime
from tocom.system.files import write_json

FAMILIES = (EVERY, "spaced:1,4,7,10", "spaced:1,5,9")
DEGREE, BATCHES = 16, (1, 8)
BACKENDS = ("onnxruntime", "openvino")
RESULT = RESULTS / "families-engines.json"


def layers(bundles: dict[str, Bundle]) -> dict[str, Any]:
    """Return what TensorRT-RTX makes of each family, with the op plugin and without."""
    rows = []
    for lowering, (family, bundle) in product(("plugin", "native"), bundles.items()):
        record = build(bundle.path, backend="tensorrt-rtx", lowering=lowering).records[DEGREE]
        rows.append(
            {
                "lowering": lowering,
                "family": family,
                "layers": record.layers,
                "op_plugin_layers": record.op_plugin_layers,
                "content_bytes": record.engine.content_bytes,
            }
        )
        print(rows[-1], flush=True)
    return {"machine": machine(), "engines": rows}


def latency(bundles: dict[str, Bundle]) -> dict[str, Any]:
    """Return milliseconds and ratios to ``every``, per backend and batch."""
    rows, draw = [], np.random.default_rng(0)
    for backend in BACKENDS:
        opened = {family: Runtime.open(bundle.path, backend, check_answers=False) for family, bundle in bundles.items()}
        for batch in BATCHES:
            images = draw.standard_normal((batch, 3, 224, 224), np.float32)
            times = interleave(
                {
                    family: lambda runtime=runtime, images=images: runtime.infer(images, degree=DEGREE)
                    for family, runtime in opened.items()
                },
                seconds=60,
                most_rounds=120,
            )
            for family, taken in times.items():
                rows.append(
                    {
                        "backend": backend,
                        "batch": batch,
                        "family": family,
                        "rounds": len(taken),
                        "ms": median_interval(taken),
                        "ratio": paired_ratio(taken, times[EVERY]),
                    }
                )
                print(rows[-1], flush=True)
        for runtime in opened.values():
            runtime.close()
    return {"machine": machine(), "rows": rows}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=("layers", "latency"))
    only = options.parse_args().only
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    model = load_model("deit_small_patch16_224", weights="random")
    with tempfile.TemporaryDirectory() as folder:
        bundles = {
            family: export(
                model, Path(folder) / str(number), degrees=[DEGREE], family=family, batch=(1, 1, 8), check=False
            )
            for number, family in enumerate(FAMILIES)
        }
        for part in (layers, latency):
            if only in (None, part.__name__):
                result[part.__name__] = part(bundles)
    write_json(RESULT, {"degree": DEGREE, "layers": result.get("layers"), "latency": result.get("latency")})


if __name__ == "__main__":
    main()

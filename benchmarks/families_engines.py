"""Count what TensorRT-RTX makes of DeiT-S at degree 16 for each family: layers, op plugin layers, size. No GPU needed.

    python benchmarks/families_engines.py

Writes ``benchmarks/results/families-engines.json``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from measuring import RESULTS, machine

from tocom.compression.loading.model import load_model
from tocom.export import build, export
from tocom.formats.families import EVERY
from tocom.system.files import write_json

FAMILIES = (EVERY, "spaced:1,4,7,10", "spaced:1,5,9")
DEGREE = 16


def main() -> None:
    model, rows = load_model("deit_small_patch16_224", weights="random"), []
    with tempfile.TemporaryDirectory() as folder:
        for number, family in enumerate(FAMILIES):
            bundle = export(model, Path(folder) / str(number), degrees=[DEGREE], family=family, check=False)
            record = build(bundle.path, backend="tensorrt-rtx").records[DEGREE]
            rows.append(
                {
                    "family": family,
                    "layers": record.layers,
                    "op_plugin_layers": record.op_plugin_layers,
                    "content_bytes": record.engine.content_bytes,
                }
            )
            print(rows[-1], flush=True)
    write_json(RESULTS / "families-engines.json", {"machine": machine(), "degree": DEGREE, "engines": rows})


if __name__ == "__main__":
    main()

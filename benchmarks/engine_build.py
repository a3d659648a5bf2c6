"""Build time and size of DeiT-S's TensorRT-RTX engines, which need no GPU, and what of TensorRT's own is in them.

    python benchmarks/engine_build.py [--precisions fp32,fp16] [--degrees 0,4,8,12,16] [--write]

Degrees 0, 4, 8, 12, 16 with the op plugin, then the same once more (nothing to do), then degree 8 with native lowering.
Five engines must take at most 15 seconds on two cores, the second build at most 1, and no engine may be larger than the
dense one by more than 3 %. ``--write`` puts the result into ``benchmarks/results/engines.json`` and the tables into
``docs/tensorrt.md`` between its markers. The op plugin library is compiled before the clock starts.
Run it on an idle machine; it takes two minutes once the library is cached. It needs tocom[export,rtx,plugins] and nvcc.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import between

from tocom.export.engines.backend import find_backend
from tocom.export.engines.builder import EngineSet, build
from tocom.export.op_plugin.library import build_library
from tocom.formats.bundle import Bundle
from tocom.formats.engine import unpack_engine
from tocom.system.cpu import cpu_identity

MODEL = "deit_small_patch16_224"
DEGREES = [0, 4, 8, 12, 16]
NATIVE_DEGREE = 8
BUILD_SECONDS, AGAIN_SECONDS, LARGEST_SHARE = 15.0, 1.0, 1.03
IDLE_LOAD = 1.0
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "engines.json"
PAGE = ROOT / "docs" / "tensorrt.md"
BEGIN, END = "<!-- engines: written by benchmarks/engine_build.py -->", "<!-- end of engines -->"
# Stands once in the source of every kernel that TensorRT-RTX generated, between the common part and the kernel.
KERNEL_MARK = b"__MYELIN_NVRTC_KGEN_BUILTINS_END__"


def own_kernels(content: bytes) -> dict[str, int]:
    """Return the number of TensorRT-RTX's own kernels in an engine, how many differ, and the bytes of their source."""
    sources = []
    at = content.find(KERNEL_MARK)
    while at >= 0:
        begin, end = content.rfind(b"\0", 0, at) + 1, content.find(b"\0", at)
        sources.append(content[begin:end])
        at = content.find(KERNEL_MARK, end)
    return {"own": len(sources), "different": len(set(sources)), "source_bytes": sum(map(len, sources))}


def describe(engines: EngineSet) -> list[dict[str, Any]]:
    rows = []
    for degree, record in engines.records.items():
        engine = record.engine
        path = engines.folder / engine.file
        content = unpack_engine(path.read_bytes(), engine.content_bytes, path)
        rows.append(
            {
                "degree": degree,
                "layers": record.layers,
                "op_plugin_layers": record.op_plugin_layers,
                "bytes": engine.size_bytes,
                "unpacked_bytes": engine.content_bytes,
                "kernels": own_kernels(bytes(content)),
                "seconds": record.build_seconds,
            }
        )
    return rows


def measure(precision: str, folder: Path, op_plugin: Path, degrees: list[int]) -> dict[str, Any]:
    from tocom.compression.loading.model import load_model
    from tocom.export import export

    bundle = export(
        load_model(MODEL, weights="random"), folder / precision, degrees=degrees, precision=precision, check=False
    )
    begin = time.perf_counter()
    engines = build(bundle, backend="tensorrt-rtx", op_plugin=op_plugin)
    seconds = time.perf_counter() - begin
    rows = describe(engines)
    begin = time.perf_counter()
    again = build(Bundle(bundle.path), backend="tensorrt-rtx", op_plugin=op_plugin)
    again_seconds = time.perf_counter() - begin
    assert again.built == ()
    native = describe(build(bundle, backend="tensorrt-rtx", lowering="native", degrees=[NATIVE_DEGREE]))
    dense = rows[0]
    return {
        "precision": precision,
        "seconds": round(seconds, 2),
        "again_seconds": round(again_seconds, 3),
        "largest_share": round(max(row["bytes"] for row in rows) / dense["bytes"], 4),
        "largest_share_unpacked": round(max(row["unpacked_bytes"] for row in rows) / dense["unpacked_bytes"], 4),
        "engines": rows,
        "native": native[0],
    }


def tables(report: dict[str, Any]) -> str:
    """Return the page's part between the markers."""
    machine = report["machine"]
    busy = report["load_average_before"] > IDLE_LOAD
    lines = [
        BEGIN,
        f"{machine['cores']} cores of an {machine['processor']}, no GPU, {report['backend']}, {MODEL} with random "
        f"weights, batch 1, load average {report['load_average_before']} at the start. The largest process of a "
        f"build took {report['child_peak_mb']:.0f} MB."
        + (" **The machine was busy with other work: the seconds say nothing.**" if busy else ""),
        "",
        "| precision | degree | layers | op plugin layers | engine MB | over dense | unpacked MB | over dense | "
        "own kernels (different) | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in report["runs"]:
        dense = run["engines"][0]
        for name, row in [*((str(row["degree"]), row) for row in run["engines"]), ("8, native", run["native"])]:
            kernels = row["kernels"]
            lines.append(
                f"| {run['precision']} | {name} | {row['layers']:,} | {row['op_plugin_layers']} | "
                f"{row['bytes'] / 1e6:.1f} | {row['bytes'] / dense['bytes'] - 1:+.1%} | "
                f"{row['unpacked_bytes'] / 1e6:.1f} | {row['unpacked_bytes'] / dense['unpacked_bytes'] - 1:+.1%} | "
                f"{kernels['own']} ({kernels['different']}) | {row['seconds']:.1f} |"
            )
    lines += [
        "",
        "| precision | five engines with the op plugin | the same again, nothing to do |",
        "| --- | ---: | ---: |",
        *(f"| {run['precision']} | {run['seconds']:.1f} s | {run['again_seconds']:.2f} s |" for run in report["runs"]),
        END,
    ]
    return "\n".join(lines)


def rewrite(page: str, report: dict[str, Any]) -> str:
    """Return the page with the part between the markers written again."""
    return between(page, BEGIN, END, tables(report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", default="fp32,fp16")
    parser.add_argument("--degrees", default=",".join(map(str, DEGREES)), help="must hold 0 and 8; all for --write")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    degrees = sorted(int(degree) for degree in arguments.degrees.split(","))
    if not {0, NATIVE_DEGREE} <= set(degrees) or (arguments.write and degrees != DEGREES):
        parser.error(f"--degrees must hold 0 and {NATIVE_DEGREE}; --write is for {DEGREES} alone.")
    library = build_library(architectures=[89])
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory(prefix="tocom-engines-") as folder:
        runs = [
            measure(precision, Path(folder), library.path, degrees) for precision in arguments.precisions.split(",")
        ]
    backend = find_backend("tensorrt-rtx")
    report = {
        "model": MODEL,
        "backend": f"{backend.name} {backend.version}",
        "machine": cpu_identity(),
        "load_average_before": load,
        "child_peak_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6, 1),
        "runs": runs,
        "passes": {
            f"five engines in {BUILD_SECONDS:.0f} s": all(run["seconds"] <= BUILD_SECONDS for run in runs),
            f"again in {AGAIN_SECONDS:.0f} s": all(run["again_seconds"] <= AGAIN_SECONDS for run in runs),
            "at most 3 % larger than dense": all(run["largest_share"] <= LARGEST_SHARE for run in runs),
        },
    }
    text = json.dumps(report, indent=2) + "\n"
    if arguments.write:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(text, encoding="utf-8")
        PAGE.write_text(rewrite(PAGE.read_text(encoding="utf-8"), report), encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()

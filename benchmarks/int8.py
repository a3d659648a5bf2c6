"""INT8 on the quickstart's model: accuracy, size and latency against float32, and what ranges per degree are worth.

    python benchmarks/int8.py [--quickstart quickstart-output] [--samples 200]

Takes the bundle of ``tocom quickstart``, or makes it first (about nine minutes). Ranges come from training cells. The
method and the floor come from cells that the quickstart uses for nothing: of its 120 held-out cells two are 1.7 points,
so a floor of one point would be held or missed by chance. Every figure is of test cells, which decide nothing. Writes
``benchmarks/results/int8.json`` and the tables of ``docs/int8.md``.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tocom.bundle import Bundle
from tocom.calibration import mcnemar
from tocom.calibration.accuracy import Answers, collect_answers
from tocom.calibration.precision import compare_precisions, degree_bytes
from tocom.calibration.qdq import default_scheme
from tocom.calibration.quantize import quantize
from tocom.calibration.ranges import METHODS, collect_ranges
from tocom.calibration.trial import DegreeModel, compare
from tocom.files import write_json
from tocom.images import read_image
from tocom.quickstart.cells import Cell, split_cells
from tocom.runtime import Runtime

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "int8.json"
PAGE = ROOT / "docs" / "int8.md"
DEGREES = (0, 8, 16)
MOST_POINTS_LOST, MOST_SIZE = 1.0, 0.35
# As the quickstart parts the cells.
TRAIN, HELD_OUT, TEST = 700, 120, 220


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quickstart", type=Path, default=ROOT / "quickstart-output")
    options.add_argument("--samples", type=int, default=200, help="timed inferences per degree and precision")
    options.add_argument("--range-images", type=int, default=64, help="training cells that make ranges")
    options.add_argument("--held-out", type=int, default=1000, help="unused cells for the method and the floor")
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--page", type=Path, default=PAGE)
    options.add_argument("--page-only", action="store_true", help="write the page from the results that are there")
    chosen = options.parse_args()
    if not chosen.page_only:
        write_json(chosen.out, measure(chosen))
    write_page(chosen.out, chosen.page)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    if not (options.quickstart / "bundle" / "bundle.json").exists():
        from tocom.quickstart.run import quickstart

        quickstart(options.quickstart, progress=say)
    split = split_cells(TRAIN, HELD_OUT, TEST)
    tested = {cell.path for cell in split.test}
    # A longer test part begins with the same cells; what is beyond them the quickstart never saw.
    unused = [cell for cell in split_cells(TRAIN, HELD_OUT, TEST + options.held_out).test if cell.path not in tested]
    dense = Bundle(options.quickstart / "bundle")
    made = quantize(
        dense,
        options.quickstart / "bundle-int8",
        pairs(split.train[: options.range_images]),
        held_out=pairs(unused),
        held_out_images=len(unused),
        degrees=DEGREES,
        range_images=options.range_images,
        floor_points=MOST_POINTS_LOST,
        overwrite=True,
        progress=say,
    )
    with (
        Runtime.open(made.path, "onnxruntime", warm=False) as int8,
        Runtime.open(dense.path, "onnxruntime", degrees=DEGREES, warm=False) as fp32,
    ):
        int8.warm_up(expect_profile=False)
        fp32.warm_up(expect_profile=False)
        comparisons = compare_precisions(int8, fp32, samples=options.samples, progress=say)
        answers = collect_answers(int8, pairs(split.test), progress=say)
        reference = collect_answers(fp32, pairs(split.test), progress=say)
        backend = {"device": dict(int8.backend.device), "threads": int8.backend.threads}
    rows = [row(made, dense, degree, answers, reference, comparisons[degree]) for degree in DEGREES]
    results = {
        "backend": backend,
        "cells": {"ranges": options.range_images, "held_out": len(unused), "test": len(split.test)},
        "samples": options.samples,
        "quantization": made.manifest["quantization"],
        "degrees": rows,
        "ranges_at_16": ranges_at(dense, 16, split.train[: options.range_images], split.test),
    }
    results["holds"] = {
        "accuracy": all(each["points_lost"] <= MOST_POINTS_LOST for each in rows),
        "size": all(each["size_ratio"] <= MOST_SIZE for each in rows),
        "ranges": all(each["own"]["divergence"] < each["degree_0"]["divergence"] for each in results["ranges_at_16"]),
    }
    return results


def row(
    made: Bundle, dense: Bundle, degree: int, answers: Answers, reference: Answers, comparison: Any
) -> dict[str, Any]:
    right, before = answers.right()[degree], reference.right()[degree]
    entry = next(each for each in made.manifest["degrees"] if each["degree"] == degree)
    int8, fp32 = comparison.candidates["int8"], comparison.candidates["fp32"]
    lost, gained = int((before & ~right).sum()), int((right & ~before).sum())
    return {
        "degree": degree,
        "precision": entry["precision"],
        "method": entry["quantization"]["method"],
        "excluded": entry["quantization"]["excluded"],
        "accuracy": vars(answers.accuracy()[degree]),
        "accuracy_float32": vars(reference.accuracy()[degree]),
        "points_lost": round(100 * float(before.mean() - right.mean()), 4),
        "lost": lost,
        "gained": gained,
        "mcnemar": mcnemar(lost, gained),
        "agreement": float((answers.by_degree[degree] == reference.by_degree[degree]).mean()),
        "size_ratio": degree_bytes(made, degree) / degree_bytes(dense, degree),
        "p50_ms": int8.p50_ms,
        "p50_ms_float32": fp32.p50_ms,
        "latency_ratio": int8.p50_ms / fp32.p50_ms,
        "winner": comparison.winner,
        "reason": comparison.reason,
    }


def ranges_at(dense: Bundle, degree: int, cells: list[Cell], test: list[Cell]) -> list[dict[str, Any]]:
    """Return, per method, what the degree's own ranges and the dense degree's give on test cells."""
    entry = dense.manifest["input"]
    images = np.stack([read_image(cell.path, entry) for cell in cells])
    pixels = np.stack([read_image(cell.path, entry) for cell in test])
    labels = np.array([cell.label for cell in test], np.int64)
    model = DegreeModel(dense, degree, pixels, labels, default_scheme())
    sources = {"own": degree, "degree_0": 0}
    ranges = {name: collect_ranges(dense.read_onnx(source), dense.path, images) for name, source in sources.items()}
    rows = []
    for method in METHODS:
        found: dict[str, Any] = {"method": method}
        parted = {}
        for name in sources:
            say(f"degree {degree}, {method}, ranges: {name}", 0, 1)
            outputs = model.outputs_of(ranges[name][method])
            parted[name] = compare(model.outputs, outputs, True)
            found[name] = {
                "accuracy": float((outputs.argmax(-1) == labels).mean()),
                "agreement": float((outputs.argmax(-1) == model.outputs.argmax(-1)).mean()),
                "divergence": float(parted[name].mean()),
                "median_divergence": float(np.median(parted[name])),
                "logit_error": float(np.sqrt(np.square(outputs - model.outputs).mean())),
            }
        nearer = int((parted["own"] < parted["degree_0"]).sum())
        found["own_nearer"] = nearer
        found["images"] = len(test)
        found["sign_test"] = mcnemar(nearer, len(test) - nearer)
        rows.append(found)
    return rows


def write_page(results: Path, page: Path) -> None:
    """Put the tables of the results between the page's markers."""
    import json

    content = json.loads(results.read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    for name, table in (("degrees", degree_table(content)), ("ranges", range_table(content))):
        pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
        text = re.sub(pattern, lambda found, table=table: found[1] + table + found[2], text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


def degree_table(content: dict[str, Any]) -> str:
    cells = content["cells"]["test"]
    lines = [
        f"| degree | ranges | layers in float32 | accuracy float32 ({cells} test cells) | accuracy INT8 | points lost "
        "| answers that differ | size | median ms float32 | median ms INT8 | ratio | winner |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for each in content["degrees"]:
        lines.append(
            f"| {each['degree']} | {each['method']} | {len(each['excluded'])} | {share(each['accuracy_float32'])} "
            f"| {share(each['accuracy'])} | {each['points_lost']:.2f} | {1 - each['agreement']:.1%} "
            f"| {each['size_ratio']:.3f} | {each['p50_ms_float32']:.1f} | {each['p50_ms']:.1f} "
            f"| {each['latency_ratio']:.2f} | {each['winner']} |"
        )
    return "\n".join(lines) + "\n"


def range_table(content: dict[str, Any]) -> str:
    lines = [
        "| ranges by | of degree | accuracy | answers as float32 | divergence | median divergence | logit error "
        "| nearer to float32 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in content["ranges_at_16"]:
        for name, title in (("own", "16"), ("degree_0", "0")):
            found = each[name]
            nearer = each["own_nearer"] if name == "own" else each["images"] - each["own_nearer"]
            lines.append(
                f"| {each['method']} | {title} | {found['accuracy']:.1%} | {found['agreement']:.1%} "
                f"| {found['divergence']:.4f} | {found['median_divergence']:.5f} | {found['logit_error']:.3f} "
                f"| {nearer} of {each['images']} |"
            )
    return "\n".join(lines) + "\n"


def share(accuracy: dict[str, Any]) -> str:
    return f"{accuracy['value']:.1%} ({accuracy['low']:.1%}–{accuracy['high']:.1%})"


def pairs(cells: list[Cell]) -> list[tuple[Any, int | None]]:
    return [(cell.path, cell.label) for cell in cells]


def say(what: str, done: int, total: int) -> None:
    print(f"{what} {done}/{total}", file=sys.stderr)


if __name__ == "__main__":
    main()

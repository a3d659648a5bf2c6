"""INT8 on the quickstart's model: accuracy, size and latency against float32, and what ranges per degree are worth.

    python benchmarks/int8.py [--quickstart quickstart-output] [--part every_layer|accuracy|ranges|latency]

Takes the bundle of ``tocom quickstart``, or makes it first (about five minutes). Ranges come from training cells. The
floor comes from cells that the quickstart uses for nothing: of its 120 held-out cells two are 1.7 points,
so a floor of one point would be held or missed by chance. Every figure is of test cells, which decide nothing. Writes
``benchmarks/results/int8.json`` and the tables of ``docs/int8.md``. Without ``--part`` all is measured; a part that is
measured alone replaces its own figures only. Latency wants an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measuring import between
from numpy.typing import NDArray

from tocom.calibration import mcnemar
from tocom.calibration.accuracy.answers import Answers, collect_answers
from tocom.calibration.accuracy.precisions import compare_precisions
from tocom.calibration.int8.qdq import default_scheme
from tocom.calibration.int8.quantizer import quantize
from tocom.calibration.int8.ranges import collect_ranges
from tocom.calibration.int8.trial import DegreeModel, compare, load_degree
from tocom.formats.bundle import Bundle
from tocom.images import read_image
from tocom.quickstart.cells import HELD_OUT, TEST, TRAIN, Cell, split_cells
from tocom.runtime import Runtime
from tocom.system.files import write_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "int8.json"
PAGE = ROOT / "docs" / "int8.md"
PARTS = ("every_layer", "accuracy", "ranges", "latency")
DEGREES = (0, 8, 16)
AT = 16
MOST_POINTS_LOST, MOST_SIZE = 1.0, 0.35


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quickstart", type=Path, default=ROOT / "quickstart-output")
    options.add_argument("--part", choices=PARTS, action="append", help="measure this alone; may be given again")
    options.add_argument("--samples", type=int, default=200, help="timed inferences per degree and precision")
    options.add_argument("--range-images", type=int, default=64, help="training cells that make ranges")
    options.add_argument("--held-out", type=int, default=1000, help="unused cells for the floor")
    options.add_argument("--draws", type=int, default=5, help="draws of range images, own ranges against degree 0's")
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--page", type=Path, default=PAGE)
    options.add_argument("--page-only", action="store_true", help="write the page from the results that are there")
    chosen = options.parse_args()
    if not chosen.page_only:
        measures = {
            "every_layer": measure_every_layer,
            "accuracy": measure_accuracy,
            "ranges": measure_ranges,
            "latency": measure_latency,
        }
        results = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.part and chosen.out.exists() else {}
        for part in chosen.part or PARTS:
            results[part] = measures[part](chosen)
            write_json(chosen.out, {name: results[name] for name in PARTS if name in results})
    write_page(chosen.out, chosen.page)


def measure_accuracy(options: argparse.Namespace) -> dict[str, Any]:
    """Quantize, and return what each degree loses on test cells and how large it is."""
    dense = dense_bundle(options)
    made, split = quantized(options, dense), split_cells(TRAIN, HELD_OUT, TEST)
    with Runtime.open(made.path, "onnxruntime", warm=False) as runtime:
        runtime.warm_up(expect_profile=False)
        answers = collect_answers(runtime, pairs(split.test), progress=say)
    with Runtime.open(dense.path, "onnxruntime", degrees=DEGREES, warm=False) as runtime:
        runtime.warm_up(expect_profile=False)
        reference = collect_answers(runtime, pairs(split.test), progress=say)
    rows = [row(made, dense, degree, answers, reference) for degree in DEGREES]
    return {
        "test_cells": len(split.test),
        "quantization": made.manifest["quantization"],
        "degrees": rows,
        "holds": {
            "accuracy": all(each["points_lost"] <= MOST_POINTS_LOST for each in rows),
            "size": all(each["size_ratio"] <= MOST_SIZE for each in rows),
        },
    }


def measure_every_layer(options: argparse.Namespace) -> dict[str, Any]:
    """Return how far INT8 departs from float32 on cells that nothing else uses, with every layer in INT8."""
    dense, split = dense_bundle(options), split_cells(TRAIN, HELD_OUT, TEST)
    cells = unused_cells(options.held_out)
    pixels, labels = read(dense, cells), np.array([cell.label for cell in cells], np.int64)
    images = read(dense, split.train[: options.range_images])
    rows = []
    for number, degree in enumerate(DEGREES):
        say(f"degree {degree}: every layer in INT8", number, len(DEGREES))
        model = DegreeModel(dense, degree, pixels, labels, default_scheme())
        outputs = model.outputs_of(model.ranges(images))
        parted = compare(model.outputs, outputs, True)
        right = outputs.argmax(-1) == labels
        lost, gained = int((model.right & ~right).sum()), int((right & ~model.right).sum())
        rows.append(
            {
                "degree": degree,
                "divergence": float(parted.mean()),
                "median_divergence": float(np.median(parted)),
                "agreement": float((outputs.argmax(-1) == model.outputs.argmax(-1)).mean()),
                "lost": lost,
                "gained": gained,
                "mcnemar": mcnemar(lost, gained),
            }
        )
    return {"held_out_cells": len(cells), "range_images": len(images), "rows": rows}


def measure_latency(options: argparse.Namespace) -> dict[str, Any]:
    """Return both precisions' latency per degree, timed in turn."""
    dense = dense_bundle(options)
    path = options.quickstart / "bundle-int8"
    made = Bundle(path) if (path / "bundle.json").exists() else quantized(options, dense)
    with (
        Runtime.open(made.path, "onnxruntime", warm=False) as int8,
        Runtime.open(dense.path, "onnxruntime", degrees=DEGREES, warm=False) as fp32,
    ):
        int8.warm_up(expect_profile=False)
        fp32.warm_up(expect_profile=False)
        comparisons = compare_precisions(int8, fp32, samples=options.samples, progress=say)
        backend = {"device": dict(int8.backend.device), "threads": int8.backend.threads}
    return {
        "backend": backend,
        "samples": options.samples,
        "degrees": [
            {
                "degree": degree,
                "p50_ms": comparisons[degree].candidates["int8"].p50_ms,
                "p50_ms_float32": comparisons[degree].candidates["fp32"].p50_ms,
                "winner": comparisons[degree].winner,
                "reason": comparisons[degree].reason,
            }
            for degree in DEGREES
        ],
    }


def measure_ranges(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the degree's own ranges and the dense degree's give on test cells.

    Where two ranges differ little, which is the nearer to float32 hangs on the images that made them; so every figure
    is a mean over several draws of them.
    """
    dense, split = dense_bundle(options), split_cells(TRAIN, HELD_OUT, TEST)
    pixels, labels = read(dense, split.test), np.array([cell.label for cell in split.test], np.int64)
    draws = [split.train[start : start + options.range_images] for start in range(0, TRAIN, options.range_images)]
    model = DegreeModel(dense, AT, pixels, labels, default_scheme())
    parted: dict[str, list[Any]] = {"own": [], "degree_0": []}
    answers: dict[str, list[Any]] = {"own": [], "degree_0": []}
    widths: list[float] = []
    for number, cells in enumerate(draws[: options.draws]):
        images = read(dense, cells)
        ranges = {"own": model.ranges(images), "degree_0": collect_ranges(load_degree(dense, 0), dense.path, images)}
        own, other = ranges["own"], ranges["degree_0"]
        widths += [(own[name][1] - own[name][0]) / (other[name][1] - other[name][0]) for name in own]
        for name, found in ranges.items():
            say(f"draw {number + 1}: degree {AT}, ranges: {name}", number, options.draws)
            outputs = model.outputs_of(found)
            parted[name].append(compare(model.outputs, outputs, True))
            answers[name].append(outputs.argmax(-1))
    mean = {name: np.mean(found, axis=0) for name, found in parted.items()}
    nearer, further = int((mean["own"] < mean["degree_0"]).sum()), int((mean["own"] > mean["degree_0"]).sum())
    result: dict[str, Any] = {
        "degree": AT,
        "range_images": options.range_images,
        "draws": min(options.draws, len(draws)),
        "test_cells": len(split.test),
        "own_nearer": nearer,
        "degree_0_nearer": further,
        "sign_test": mcnemar(nearer, further),
        "width_ratio": float(np.median(widths)),
    }
    for name, divergence in mean.items():
        result[name] = {
            "accuracy": float(np.mean([each == labels for each in answers[name]])),
            "agreement": float(np.mean([each == model.outputs.argmax(-1) for each in answers[name]])),
            "divergence": float(divergence.mean()),
            "median_divergence": float(np.median(divergence)),
            "by_draw": [float(each.mean()) for each in parted[name]],
        }
    is_less = result["own"]["divergence"] < result["degree_0"]["divergence"]
    return {**result, "own_ranges_win": is_less and nearer > further and result["sign_test"] <= 0.05}


def dense_bundle(options: argparse.Namespace) -> Bundle:
    if not (options.quickstart / "bundle" / "bundle.json").exists():
        from tocom.quickstart.run import quickstart

        quickstart(options.quickstart, progress=say)
    return Bundle(options.quickstart / "bundle")


def unused_cells(count: int) -> list[Cell]:
    """Return cells that the quickstart never saw: a longer test part than its own holds them too."""
    tested = {cell.path for cell in split_cells(TRAIN, HELD_OUT, TEST).test}
    return [cell for cell in split_cells(TRAIN, HELD_OUT, TEST + count).test if cell.path not in tested]


def quantized(options: argparse.Namespace, dense: Bundle) -> Bundle:
    split, unused = split_cells(TRAIN, HELD_OUT, TEST), unused_cells(options.held_out)
    return quantize(
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


def row(made: Bundle, dense: Bundle, degree: int, answers: Answers, reference: Answers) -> dict[str, Any]:
    right, before = answers.right()[degree], reference.right()[degree]
    entry = next(each for each in made.manifest["degrees"] if each["degree"] == degree)
    lost, gained = int((before & ~right).sum()), int((right & ~before).sum())
    return {
        "degree": degree,
        "precision": entry["precision"],
        "held_out": entry["quantization"],
        "accuracy": vars(answers.accuracy()[degree]),
        "accuracy_float32": vars(reference.accuracy()[degree]),
        "points_lost": round(100 * float(before.mean() - right.mean()), 4),
        "lost": lost,
        "gained": gained,
        "mcnemar": mcnemar(lost, gained),
        "agreement": float((answers.by_degree[degree] == reference.by_degree[degree]).mean()),
        "size_ratio": made.degree_bytes(degree) / dense.degree_bytes(degree),
    }


def write_page(results: Path, page: Path) -> None:
    """Put the tables of the results between the page's markers."""
    content = json.loads(results.read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    tables = {"degrees": degree_table, "latency": latency_table, "ranges": range_table}
    for name, table in {"every_layer": every_layer_table, **tables}.items():
        key = {"degrees": "accuracy"}.get(name, name)
        unknown = "Not measured on an idle machine yet.\n" if key == "latency" else "Not measured yet.\n"
        filled = table(content[key]) if key in content else unknown
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        text = between(text, begin, end, begin + filled + end)
    page.write_text(text, encoding="utf-8")


def degree_table(content: dict[str, Any]) -> str:
    facts = content["quantization"]
    lines = [
        f"{content['test_cells']} test cells, of which one is {100 / content['test_cells']:.2f} points; ranges "
        f"from {facts['range_images']} training cells, the floor from {facts['held_out_images']} cells that nothing "
        "else uses.",
        "",
        "| degree | precision | layers in float32 | accuracy float32 | accuracy INT8 | points lost (cells) "
        "| McNemar's p | answers that differ | points lost on held-out cells | size |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in content["degrees"]:
        found = each["held_out"]
        lines.append(
            f"| {each['degree']} | {each['precision']} | {len(found['excluded'])} "
            f"| {share(each['accuracy_float32'])} | {share(each['accuracy'])} "
            f"| {each['points_lost']:.2f} (−{each['lost']}, +{each['gained']}) | {each['mcnemar']:.2f} "
            f"| {1 - each['agreement']:.1%} | {found['loss_points']:.2f} | {each['size_ratio']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def every_layer_table(content: dict[str, Any]) -> str:
    lines = [
        f"{content['held_out_cells']} cells that nothing else uses; ranges from {content['range_images']} training "
        "cells.",
        "",
        "| degree | divergence | median divergence | answers as float32 | cells lost, gained | McNemar's p |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in content["rows"]:
        lines.append(
            f"| {each['degree']} | {each['divergence']:.4f} | {each['median_divergence']:.5f} "
            f"| {each['agreement']:.1%} | −{each['lost']}, +{each['gained']} | {each['mcnemar']:.2g} |"
        )
    return "\n".join(lines) + "\n"


def latency_table(content: dict[str, Any]) -> str:
    lines = [
        f"{content['samples']} timed inferences per degree and precision, {content['backend']['threads']} threads.",
        "",
        "| degree | median ms float32 | median ms INT8 | ratio | winner |",
        "| ---: | ---: | ---: | ---: | --- |",
    ]
    for each in content["degrees"]:
        lines.append(
            f"| {each['degree']} | {each['p50_ms_float32']:.1f} | {each['p50_ms']:.1f} "
            f"| {each['p50_ms'] / each['p50_ms_float32']:.2f} | {each['winner']} |"
        )
    return "\n".join(lines) + "\n"


def range_table(content: dict[str, Any]) -> str:
    cells = content["test_cells"]
    even = ", measured with channels made even first (0.5), which is gone" if "channels_made_even" in content else ""
    lines = [
        f"{cells} test cells; means over {content['draws']} draws of {content['range_images']} training cells that "
        f"make the ranges{even}.",
        "",
        "| ranges of degree | width | accuracy | answers as float32 | divergence | median divergence "
        "| nearer to float32 | sign test's p |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, degree in (("own", content["degree"]), ("degree_0", 0)):
        found = content[name]
        width = content["width_ratio"] if name == "own" else 1.0
        lines.append(
            f"| {degree} | {width:.3f} | {found['accuracy']:.1%} | {found['agreement']:.1%} "
            f"| {found['divergence']:.4f} | {found['median_divergence']:.5f} | {content[f'{name}_nearer']} of {cells} "
            f"| {content['sign_test']:.2g} |"
        )
    verdict = "are" if content["own_ranges_win"] else "are not"
    lines += ["", f"Own ranges {verdict} nearer in the mean and in significantly many cells (5 %)."]
    return "\n".join(lines) + "\n"


def share(accuracy: dict[str, Any]) -> str:
    return f"{accuracy['value']:.1%} ({accuracy['low']:.1%}–{accuracy['high']:.1%})"


def pairs(cells: list[Cell]) -> list[tuple[Any, int | None]]:
    return [(cell.path, cell.label) for cell in cells]


def read(bundle: Bundle, cells: list[Cell]) -> NDArray[np.float32]:
    return np.stack([read_image(cell.path, bundle.manifest["input"]) for cell in cells])


def say(what: str, done: int, total: int) -> None:
    print(f"{what} {done}/{total}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""INT8 on the quickstart's model: accuracy, size and latency against float32, and what ranges per degree are worth.

    python benchmarks/int8.py [--quickstart quickstart-output] [--part equalization|accuracy|ranges|latency]

Takes the bundle of ``tocom quickstart``, or makes it first (about nine minutes). Ranges come from training cells. The
method and the floor come from cells that the quickstart uses for nothing: of its 120 held-out cells two are 1.7 points,
so a floor of one point would be held or missed by chance. Every figure is of test cells, which decide nothing. Writes
``benchmarks/results/int8.json`` and the tables of ``docs/int8.md``. Without ``--part`` all is measured; a part that is
measured alone replaces its own figures only. Latency wants an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from measuring import between
from numpy.typing import NDArray

from tocom.calibration import mcnemar
from tocom.calibration.accuracy.answers import Answers, collect_answers
from tocom.calibration.accuracy.precisions import compare_precisions, degree_bytes
from tocom.calibration.int8.equalization import equalization_scales, equalized, largest_values
from tocom.calibration.int8.qdq import Range, default_scheme
from tocom.calibration.int8.quantizer import EQUALIZE, quantize
from tocom.calibration.int8.ranges import METHODS, collect_ranges
from tocom.calibration.int8.trial import DegreeModel, compare, load_degree
from tocom.formats.bundle import Bundle
from tocom.images import read_image
from tocom.quickstart.cells import HELD_OUT, TEST, TRAIN, Cell, split_cells
from tocom.runtime import Runtime
from tocom.system.files import write_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "int8.json"
PAGE = ROOT / "docs" / "int8.md"
PARTS = ("equalization", "accuracy", "ranges", "latency")
STRENGTHS = (0.0, 0.25, 0.5, 0.75)
DEGREES = (0, 8, 16)
AT = 16
MOST_POINTS_LOST, MOST_SIZE = 1.0, 0.35


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quickstart", type=Path, default=ROOT / "quickstart-output")
    options.add_argument("--part", choices=PARTS, action="append", help="measure this alone; may be given again")
    options.add_argument("--samples", type=int, default=200, help="timed inferences per degree and precision")
    options.add_argument("--range-images", type=int, default=64, help="training cells that make ranges")
    options.add_argument("--method", default="auto", help="of the ranges, as tocom quantize takes it")
    options.add_argument("--held-out", type=int, default=1000, help="unused cells for the method and the floor")
    options.add_argument("--draws", type=int, default=5, help="draws of range images, own ranges against degree 0's")
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--page", type=Path, default=PAGE)
    options.add_argument("--page-only", action="store_true", help="write the page from the results that are there")
    chosen = options.parse_args()
    if not chosen.page_only:
        measures = {
            "equalization": measure_equalization,
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


def measure_equalization(options: argparse.Namespace) -> dict[str, Any]:
    """Return, per strength, how far INT8 departs from float32 on cells that nothing else uses: they choose it."""
    dense, split = dense_bundle(options), split_cells(TRAIN, HELD_OUT, TEST)
    cells = unused_cells(options.held_out)
    pixels, labels = read(dense, cells), np.array([cell.label for cell in cells], np.int64)
    images = read(dense, split.train[: options.range_images])
    largest = [largest_values(load_degree(dense, degree), dense.path, images) for degree in DEGREES]
    rows = []
    for degree in DEGREES:
        model = DegreeModel(dense, degree, pixels, labels, default_scheme())
        base = None
        for strength in STRENGTHS:
            say(f"degree {degree}: equalization {strength:g}", STRENGTHS.index(strength), len(STRENGTHS))
            model.even = equalized(model.model, equalization_scales(largest, strength)) if strength else model.model
            outputs = model.outputs_of(model.ranges(images, ("min-max",))["min-max"])
            parted = compare(model.outputs, outputs, True)
            base = parted if base is None else base
            nearer, further = int((parted < base).sum()), int((parted > base).sum())
            right = outputs.argmax(-1) == labels
            lost, gained = int((model.right & ~right).sum()), int((right & ~model.right).sum())
            rows.append(
                {
                    "degree": degree,
                    "strength": strength,
                    "divergence": float(parted.mean()),
                    "median_divergence": float(np.median(parted)),
                    "agreement": float((outputs.argmax(-1) == model.outputs.argmax(-1)).mean()),
                    "lost": lost,
                    "gained": gained,
                    "mcnemar": mcnemar(lost, gained),
                    "nearer": nearer,
                    "sign_test": mcnemar(nearer, further),
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
    """Return, per method, what the degree's own ranges and the dense degree's give on test cells.

    Where two ranges differ little, which is the nearer to float32 hangs on the images that made them; so every figure
    is a mean over several draws of them.
    """
    dense, split = dense_bundle(options), split_cells(TRAIN, HELD_OUT, TEST)
    pixels, labels = read(dense, split.test), np.array([cell.label for cell in split.test], np.int64)
    draws = [split.train[start : start + options.range_images] for start in range(0, TRAIN, options.range_images)]
    methods = METHODS if options.method == "auto" else (options.method,)
    parted: dict[str, dict[str, list[Any]]] = {method: {"own": [], "degree_0": []} for method in methods}
    answers: dict[str, dict[str, list[Any]]] = {method: {"own": [], "degree_0": []} for method in methods}
    widths: dict[str, list[float]] = {method: [] for method in methods}
    for place, cells in enumerate(draws[: options.draws]):
        images = read(dense, cells)
        scales = equalization_scales(
            [largest_values(load_degree(dense, degree), dense.path, images) for degree in DEGREES], EQUALIZE
        )
        model = DegreeModel(dense, AT, pixels, labels, default_scheme(), scales)
        even = equalized(load_degree(dense, 0), scales)
        ranges = {"own": model.ranges(images, methods), "degree_0": collect_ranges(even, dense.path, images, methods)}
        for method in methods:
            widths[method] += relative_widths(ranges["own"][method], ranges["degree_0"][method])
            for name, found in ranges.items():
                say(f"draw {place + 1}: degree {AT}, {method}, ranges: {name}", place, options.draws)
                outputs = model.outputs_of(found[method])
                parted[method][name].append(compare(model.outputs, outputs, True))
                answers[method][name].append(outputs.argmax(-1))
    rows = []
    for method in methods:
        mean = {name: np.mean(found, axis=0) for name, found in parted[method].items()}
        nearer, further = int((mean["own"] < mean["degree_0"]).sum()), int((mean["own"] > mean["degree_0"]).sum())
        entry: dict[str, Any] = {"method": method, "own_nearer": nearer, "degree_0_nearer": further}
        entry |= {"sign_test": mcnemar(nearer, further), "width_ratio": float(np.median(widths[method]))}
        for name in mean:
            entry[name] = {
                "accuracy": float(np.mean([each == labels for each in answers[method][name]])),
                "agreement": float(np.mean([each == model.outputs.argmax(-1) for each in answers[method][name]])),
                "divergence": float(mean[name].mean()),
                "median_divergence": float(np.median(mean[name])),
                "by_draw": [float(each.mean()) for each in parted[method][name]],
            }
        rows.append(entry)
    return {
        "degree": AT,
        "range_images": options.range_images,
        "draws": min(options.draws, len(draws)),
        "test_cells": len(split.test),
        "methods": rows,
        "own_ranges_win": [
            each["method"]
            for each in rows
            if each["own"]["divergence"] < each["degree_0"]["divergence"]
            and each["own_nearer"] > each["degree_0_nearer"]
            and each["sign_test"] <= 0.05
        ],
    }


def relative_widths(own: Mapping[str, Range], other: Mapping[str, Range]) -> list[float]:
    """Return per layer how wide its own range is, the other being one."""
    return [(own[name][1] - own[name][0]) / (other[name][1] - other[name][0]) for name in own]


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
        method=options.method,
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
        "size_ratio": degree_bytes(made, degree) / degree_bytes(dense, degree),
    }


def write_page(results: Path, page: Path) -> None:
    """Put the tables of the results between the page's markers."""
    content = json.loads(results.read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    tables = {"degrees": degree_table, "latency": latency_table, "ranges": range_table}
    for name, table in {"equalization": equalization_table, **tables}.items():
        key = {"degrees": "accuracy"}.get(name, name)
        unknown = "Not measured on an idle machine yet.\n" if key == "latency" else "Not measured yet.\n"
        filled = table(content[key]) if key in content else unknown
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        text = between(text, begin, end, begin + filled + end)
    page.write_text(text, encoding="utf-8")


def degree_table(content: dict[str, Any]) -> str:
    facts = content["quantization"]
    tried = {len(each["held_out"]["methods"]) for each in content["degrees"]}
    chosen = "the floor" if tried == {1} else "the method and the floor"
    lines = [
        f"{content['test_cells']} test cells, of which one is {100 / content['test_cells']:.2f} points; ranges "
        f"from {facts['range_images']} training cells, {chosen} from {facts['held_out_images']} cells that nothing "
        "else uses.",
        "",
        "| degree | precision | ranges | layers in float32 | accuracy float32 | accuracy INT8 | points lost (cells) "
        "| McNemar's p | answers that differ | points lost on held-out cells | size |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in content["degrees"]:
        found = each["held_out"]
        lines.append(
            f"| {each['degree']} | {each['precision']} | {found['method']} | {len(found['excluded'])} "
            f"| {share(each['accuracy_float32'])} | {share(each['accuracy'])} "
            f"| {each['points_lost']:.2f} (−{each['lost']}, +{each['gained']}) | {each['mcnemar']:.2f} "
            f"| {1 - each['agreement']:.1%} | {found['loss_points']:.2f} | {each['size_ratio']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def equalization_table(content: dict[str, Any]) -> str:
    cells = content["held_out_cells"]
    lines = [
        f"{cells} cells that nothing else uses; min-max ranges from {content['range_images']} training cells.",
        "",
        "| degree | strength | divergence | median divergence | answers as float32 | cells lost, gained | McNemar's p "
        "| nearer to float32 than strength 0 | sign test's p |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in content["rows"]:
        against = f"{each['nearer']} of {cells} | {each['sign_test']:.2g}" if each["strength"] else "– | –"
        lines.append(
            f"| {each['degree']} | {each['strength']:g} | {each['divergence']:.4f} | {each['median_divergence']:.5f} "
            f"| {each['agreement']:.1%} | −{each['lost']}, +{each['gained']} | {each['mcnemar']:.2g} | {against} |"
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
    lines = [
        f"{cells} test cells; means over {content['draws']} draws of {content['range_images']} training cells that "
        "make the ranges.",
        "",
        "| ranges by | of degree | width | accuracy | answers as float32 | divergence | median divergence "
        "| nearer to float32 | sign test's p |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in content["methods"]:
        for name, title in (("own", str(content["degree"])), ("degree_0", "0")):
            found = each[name]
            width = each["width_ratio"] if name == "own" else 1.0
            lines.append(
                f"| {each['method']} | {title} | {width:.3f} | {found['accuracy']:.1%} | {found['agreement']:.1%} "
                f"| {found['divergence']:.4f} | {found['median_divergence']:.5f} | {each[f'{name}_nearer']} of {cells} "
                f"| {each['sign_test']:.2g} |"
            )
    won = " and ".join(content["own_ranges_win"]) or "no method"
    lines += ["", f"Nearer in the mean and in significantly many cells (5 %): own ranges, by {won}."]
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

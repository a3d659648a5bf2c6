"""Write docs/benchmarks.md and its pictures from the JSON files in ``benchmarks/results``.

    make bench                            # measures, then runs this
    python benchmarks/compare_page.py     # writes the page again from the committed JSON

Everything on the page comes from those files; what they lack is said to be not measured.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import families_page
from compare_pictures import draw_accuracy, draw_speed
from measuring import RESULTS, ROOT, median_interval, paired_ratio

PAGE = ROOT / "docs" / "benchmarks.md"
IMAGES = ROOT / "docs" / "images"

SYSTEMS = {
    "tocom": "**tocom bundle, ONNX Runtime**",
    "tocom-openvino": "**tocom bundle, OpenVINO**",
    "onnxruntime": "plain dense ONNX, ONNX Runtime",
    "torch": "torch, eager (merging at r > 0)",
    "torch-compiled": "torch.compile (merging at r > 0)",
    "openvino": "plain dense ONNX, OpenVINO",
    "smaller": "next smaller model, dense, ONNX Runtime",
}
NOT_MEASURED = "Not measured yet."
# The bundle as a system, the same under its other backend, and the backend's title.
_BACKENDS = (("tocom", "tocom-openvino", "ONNX Runtime"), ("tocom-openvino", "tocom", "OpenVINO"))


def page(results: Path) -> str:
    """Return the page's text."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
    parts = [_HEAD]
    compare = found.get("compare-cpu")
    if compare is None:
        parts.append(f"## On the CPU\n{NOT_MEASURED} `make bench` on an idle machine does it.")
    else:
        parts += [_setting(compare), _ratios(compare), _pictures(compare), _latencies(compare), _smaller(compare)]
        parts += [_making(compare), _first_answers(compare)]
    parts.append(_export(found.get("export")))
    parts.append(_accuracy(found.get("accuracy_against_cost")))
    parts += [families_page.section(found), _gpu(found)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


_HEAD = """
# Benchmarks
Made by `benchmarks/compare_page.py` from the JSON files in `benchmarks/results`; a test compares the two. Do not edit
it by hand. `make bench` measures the CPU part again on your machine (at most 20 minutes on two cores; nothing else may
run meanwhile) and writes this page.
"""


def _setting(compare: dict[str, Any]) -> str:
    machine = compare["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    quick = " **A quick run: it shows that the harness works and nothing else.**" if compare["quick"] else ""
    return f"""
## On the CPU
{machine["threads"]} threads on {machine["cores"]} cores of {machine["processor"]} ({machine["architecture"]},
{machine["memory_gib"]:.0f} GiB), load average {machine["load_average"]} at the start; measured {machine["measured"]} in
{compare["minutes"]:.0f} minutes with Python {machine["python"]}, {versions}.{quick}

- **Weights are random**: right for latency, meaningless for accuracy. Accuracy stands further down.
- All systems of one model and batch are timed **in turns in one process**, in an order drawn again each round. A ratio
  is the median over rounds of the ratio within a round. Brackets hold 95 % intervals (order statistics; below six
  rounds the whole range).
- Every system gets the same threads and float32; the rest is its default (OpenVINO: latency hint). This project's part
  is timed through `Runtime.infer`, its overhead included.
- Eager and compiled torch merge tokens by this project's `compress`. The bundle is exported for the one batch size
  that is timed, and runs on both of its CPU backends.
"""


def _by_name(group: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["system"], row["degree"]): row for row in group["rows"]}


def _fastest_degree(group: dict[str, Any]) -> int:
    return max(row["degree"] for row in group["rows"] if row["system"] == "tocom" and "samples_ms" in row)


def _ratios(compare: dict[str, Any]) -> str:
    lines = [
        "### How many times as fast",
        "The bundle at its highest degree, on each of its backends, against each system in the same round; above 1 the "
        "bundle is faster.",
        "",
        "| model | batch | degree | backend | eager torch, merging | compiled torch, merging | eager torch, dense | "
        "compiled torch, dense | plain dense ONNX, ONNX Runtime | plain dense ONNX, OpenVINO | own degree 0 | "
        "other backend, same degree | next smaller model, dense |",
        "| --- | ---: | ---: | --- | " + " | ".join(["---:"] * 9) + " |",
    ]
    for group in compare["groups"]:
        rows, degree = _by_name(group), _fastest_degree(group)
        for own, other, backend in _BACKENDS:
            if "samples_ms" not in rows.get((own, degree), {}):
                continue
            against = [("torch", degree), ("torch-compiled", degree), ("torch", 0), ("torch-compiled", 0)]
            against += [("onnxruntime", 0), ("openvino", 0), (own, 0), (other, degree), ("smaller", 0)]
            cells = [_ratio(rows.get(key), rows[own, degree]["samples_ms"]) for key in against]
            name = "CUDA or TensorRT" if compare["device"] == "cuda" else backend
            lines.append(f"| {group['model']} | {group['batch']} | {degree} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(row: dict[str, Any] | None, own: list[float]) -> str:
    if row is None or "samples_ms" not in row:
        return "–"
    median, low, high = paired_ratio(row["samples_ms"], own)
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def _pictures(compare: dict[str, Any]) -> str:
    batches = sorted({group["batch"] for group in compare["groups"]})
    return "\n".join(
        f"![Images per second over the degree, batch {b}](images/benchmark-batch-{b}.svg)\n" for b in batches
    )


def _latencies(compare: dict[str, Any]) -> str:
    parts = ["### Milliseconds per inference"]
    for group in compare["groups"]:
        degrees = sorted({row["degree"] for row in group["rows"]})
        rows = _by_name(group)
        rounds = len(rows["tocom", 0]["samples_ms"])
        parts += [
            f"\n**{group['model']}, batch {group['batch']}**, {rounds} rounds",
            "",
            "| system | " + " | ".join(f"r = {degree}" for degree in degrees) + " |",
            "| --- |" + " ---: |" * len(degrees),
        ]
        notes = []
        for system, title in SYSTEMS.items():
            if not any(name == system for name, _ in rows):
                continue
            cells = []
            for degree in degrees:
                row = rows.get((system, degree))
                if row is not None and "samples_ms" in row:
                    median, low, high = median_interval(row["samples_ms"])
                    cells.append(f"{_short(median)} [{_short(low)}, {_short(high)}]")
                else:
                    cells.append("–" if row is None else "not run")
                    if row is not None:
                        notes.append(f"{title} at degree {degree}: {row['error']}")
            parts.append(f"| {title} | " + " | ".join(cells) + " |")
        compiled = {d: r["ready_s"] for (s, d), r in rows.items() if s == "torch-compiled" and "ready_s" in r}
        if compiled:
            took = ", ".join(f"{seconds:.0f} s at degree {degree}" for degree, seconds in sorted(compiled.items()))
            notes.append(f"torch.compile took {took}.")
        parts += ["", *(f"- {note}" for note in notes)]
    return "\n".join(parts)


def _short(value: float) -> str:
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value < 100 else f"{value:.0f}"


def _smaller(compare: dict[str, Any]) -> str:
    lines = ["### The next smaller dense model"]
    for group in compare["groups"]:
        rows, degree = _by_name(group), _fastest_degree(group)
        if "samples_ms" not in rows.get(("smaller", 0), {}):
            continue
        own, other = rows["tocom", degree]["samples_ms"], rows["smaller", 0]["samples_ms"]
        ratio, low, high = paired_ratio(own, other)
        times = f"{ratio:.2f} times [{low:.2f}, {high:.2f}] as fast as {group['model']} at degree {degree}"
        lines.append(f"- Batch {group['batch']}: the next smaller model, dense, is {times}.")
    lines += [
        "",
        "So where a smaller model of the family has been fine-tuned and its accuracy is enough, it is the better",
        "choice. Degrees win where there is one fine-tuned model, where the budget moves, or where its accuracy is",
        "needed while the budget allows it. Whether DeiT-S at degree 16 is more accurate than dense DeiT-Ti on a task",
        "cannot be shown here: no weights of either are on PyPI.",
    ]
    return "\n".join(lines) if len(lines) > 6 else ""


def _making(compare: dict[str, Any]) -> str:
    lines = [
        "### From a checkpoint to bundle and engines",
        "| model | degrees | trace, once | write a degree | check a degree | all | bundle | plain dense ONNX |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in compare["exports"]:
        kinds: dict[str, list[float]] = {"tracing": [], "writing": [], "checking": []}
        for what, seconds in entry["seconds"].items():
            kinds.setdefault(what.split()[0], []).append(seconds)
        mean = {kind: sum(values) / max(1, len(values)) for kind, values in kinds.items()}
        lines.append(
            f"| {entry['model']} | {', '.join(map(str, entry['degrees']))} | {mean['tracing']:.1f} s | "
            f"{mean['writing']:.2f} s | {mean['checking']:.1f} s | {entry['total_s']:.1f} s | "
            f"{entry['bundle_bytes'] / 2**20:.1f} MiB | {entry['dense_onnx_bytes'] / 2**20:.1f} MiB |"
        )
    engines = compare["engines"]
    if "error" in engines:
        lines += ["", f"Engines: {engines['error']}"]
    elif engines:
        lines += [
            "",
            f"TensorRT-RTX engines of {engines['model']}, built without a GPU in {engines['total_s']:.1f} s "
            "(the op plugin library included where it was not cached):",
            "",
            "| degree | lowering | seconds | engine |",
            "| ---: | --- | ---: | ---: |",
        ]
        for row in engines["degrees"]:
            lowering = row["lowering"] if row["degree"] else "–"
            lines.append(f"| {row['degree']} | {lowering} | {row['build_s']:.1f} | {row['bytes'] / 2**20:.1f} MiB |")
    return "\n".join(lines)


def _first_answers(compare: dict[str, Any]) -> str:
    lines: list[str] = []
    for entry in compare["first_answers"]:
        lines += [
            "### The first answer",
            f"{entry['model']}, batch 1, each in a process of its own. *Open* is all that a service does before it is "
            "ready: hashes, weights, sessions, warm-up. The very first start also packs the weights for all degrees. "
            f"A profile was there; measuring it took {entry['calibrate_10_samples_s']:.1f} s (10 samples per degree).",
            "",
            "| what | import | open | first answer | second answer | memory (PSS) |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in entry["rows"]:
            if "error" in row:
                lines.append(f"| {row['what']} | failed: {row['error']} | | | | |")
                continue
            lines.append(
                f"| {row['what']} | {row['import_s']:.2f} s | {row['open_s']:.2f} s | {row['first_ms']:.1f} ms | "
                f"{row['second_ms']:.1f} ms | {row['pss_mib']:.0f} MiB |"
            )
    return "\n".join(lines)


def _accuracy(cost: dict[str, Any] | None) -> str:
    if cost is None:
        return f"## Accuracy against cost\n{NOT_MEASURED}"
    rows = cost["rows"]
    lines = [
        "## Accuracy against cost",
        f"The quickstart's ViT-S/14, one linear head, and every cheap way to run them, on all {cost['cells']:,} solar "
        "cells that neither head nor compensator saw (`benchmarks/accuracy_against_cost.py`, through ONNX Runtime). "
        "Δ is the difference to dense on the same cells, in points, with the 95 % interval of a paired bootstrap. "
        "*Found again*: the nearest among the dense features of all of them is the same cell.",
        "",
        "### Nothing re-tuned",
        "What this product is for: the model and its head as they are.",
        "",
        "| way | GMACs | accuracy | Δ | log-loss | feature gap | found again |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {row['way']} | {row['macs'] / 1e9:.2f} | {row['accuracy']['value']:.1%} "
            f"| {_points(row['difference_to_dense'])} | {row['log_loss']:.3f} | {row['gap']:.5f} "
            f"| {row['found']['value']:.1%} |"
            for row in rows
        ),
        "",
        "Against the smaller image of about the same cost, 168 pixels, on the same cells and in points: "
        + "; ".join(f"{way} {_points(each)}" for way, each in cost["against_a_smaller_image"].items())
        + ".",
        "",
        "![Accuracy and search over cost](images/accuracy-against-cost.svg)",
        "",
        "### Head fitted again",
        "What you can do where labels are at hand and you may re-tune: a smaller image is then the cheaper way to the "
        "same accuracy. It is no way where the features themselves are used: its column *found again* above.",
        "",
        "| way | GMACs | accuracy | Δ |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {row['way']} | {row['macs'] / 1e9:.2f} | {again['accuracy']['value']:.1%} "
            f"| {_points(again['difference_to_dense'])} |"
            for row in rows
            if (again := row["refitted"]) is not None
        ),
        "",
        "What this cannot show: there is one pretrained backbone on PyPI that fits, so no smaller dense *model* can be "
        "put beside it.",
        "",
        "## Search",
        f"An index of dense features exists already; {cost['queries']} of its cells, as if photographed again (turned "
        "by up to half a degree, up to 2 % cut off, 3 % brighter or darker), are searched for among all "
        f"{cost['cells']:,}. Δ is the change of recall at 1 to dense queries, in points.",
        "",
        "| way | GMACs | recall at 1 | recall at 5 | mean reciprocal rank | Δ |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {row['way']} | {row['macs'] / 1e9:.2f} | {found['recall_1']['value']:.1%} "
            f"| {found['recall_5']['value']:.1%} | {found['mean_reciprocal_rank']:.3f} "
            f"| {_points(found['recall_1_difference'])} |"
            for row in rows
            if (found := row["search"])
        ),
    ]
    return "\n".join(lines)


def _points(difference: dict[str, float]) -> str:
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]" if low or high else "–"


def _export(report: dict[str, Any] | None) -> str:
    if report is None:
        return f"## Export\n{NOT_MEASURED} `python benchmarks/export_time.py --write` on an idle machine does it."
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in report["seconds_by_step"].items())
    machine = report["machine"]
    return (
        f"## Export\n{report['model']} with random weights and a random compensator at {len(report['degrees'])} "
        f"degrees, {report['checked']} of them checked against torch under ONNX Runtime, on {machine['cores']} cores "
        f"of an {machine['processor']} (torch {machine['torch']}, load average {report['load_average_before']} at the "
        f"start): **{report['seconds']:.0f} s** ({steps}), a bundle of {report['bundle_mb']:.0f} MB, at most "
        f"{report['peak_mb']:.0f} MB of memory. `benchmarks/export_time.py` measures it."
    )


def _gpu(found: dict[str, Any]) -> str:
    lines = ["## On a GPU"]
    compare = found.get("compare-cuda")
    if compare is None:
        lines += [f"{NOT_MEASURED} On a machine with one: `python benchmarks/compare.py --device cuda`.", ""]
    else:
        lines += [f"{compare['machine']['gpu']}, measured {compare['machine']['measured']}.", "", _ratios(compare), ""]
        lines += [_latencies(compare), ""]
    kernels = [_kernels(report) for name, report in found.items() if name.startswith("op_plugin-")]
    lines += kernels or ["The op plugin's kernels: not measured. On a GPU: `python benchmarks/op_plugin.py`."]
    return "\n".join(lines)


def _kernels(report: dict[str, Any]) -> str:
    lines = [f"### The op plugin's kernels on {report['gpu']}", f"Unit: {report['unit']}.", ""]
    lines += ["| op | batch | tokens | channels | r | type | kernels | eager | compiled | share of bandwidth |"]
    lines += ["| --- |" + " ---: |" * 4 + " --- |" + " ---: |" * 4]
    for row in report["rows"]:
        times = [f"{row[k]['us']:.1f}" if "us" in row[k] else "failed" for k in ("kernels", "eager", "compiled")]
        shown = [row[key] for key in ("op", "batch", "tokens", "channels", "r", "dtype")]
        lines.append("| " + " | ".join(map(str, [*shown, *times, row["kernels"].get("share", "–")])) + " |")
    return "\n".join(lines)


def main() -> None:
    PAGE.write_text(page(RESULTS), encoding="utf-8")
    IMAGES.mkdir(exist_ok=True)
    for name, drawing in (("compare-cpu", draw_speed), ("accuracy_against_cost", draw_accuracy)):
        path = RESULTS / f"{name}.json"
        if path.exists():
            drawing(json.loads(path.read_text(encoding="utf-8")), IMAGES)
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

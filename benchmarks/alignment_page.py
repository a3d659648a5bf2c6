"""Write ``docs/alignment.md`` and its picture from ``alignment.json`` and ``alignment-engines.json``.

python benchmarks/alignment_page.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment_engines import RESULT as ENGINES
from alignment_measure import CROSSED, DEGREES, METHODS, RESULT
from domains import DOMAINS

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "alignment.md", ROOT / "docs" / "images" / "alignment-images.svg"
WAYS = {
    "alone": "compression alone",
    "compensator": "compensator",
    "alignment": "alignment",
    "both": "compensator, then alignment",
}
NEAR_DENSE = 0.015


def digits(values: Sequence[float], count: int, factor: float = 1.0) -> str:
    """Return the mean, and half the range where there is more than one draw."""
    mean = f"{factor * statistics.mean(values):.{count}f}"
    half = factor * (max(values) - min(values)) / 2
    return mean if len(values) == 1 else f"{mean} ± {half:.{count}f}"


def between(interval: Sequence[float], count: int, factor: float = 1.0) -> str:
    return f"{factor * interval[1]:+.{count}f} to {factor * interval[2]:+.{count}f}"


def cells_table(result: dict[str, Any], method: str) -> list[str]:
    """Return a row per degree and way."""
    lines = [
        "| degree | way | gap · 1000 | closed | recall | accuracy, % | log-loss | log-loss, less dense's |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in (row for row in result["cells"] if row["method"] == method):
        without = row["alone"]["gap"][0]
        for way, name in ((way, name) for way, name in WAYS.items() if way in row):
            own = row[way]
            closed = [1 - gap / without for gap in own["gap"]]
            lines.append(
                f"| {row['degree']} | {name} | {digits(own['gap'], 2, 1000)} "
                f"| {'' if way == 'alone' else digits(closed, 0, 100) + ' %'} | {digits(own['recall'], 3)} "
                f"| {digits(own['accuracy'], 1, 100)} | {digits(own['log_loss'], 3)} "
                f"| {between(own['to']['dense']['log_loss'], 3)} |"
            )
    return lines


def against(result: dict[str, Any], score: str) -> list[str]:
    """Return in words where the interval of a paired difference to compression alone leaves zero out, the wrong way."""
    worse = 1 if score in ("gap", "log_loss") else -1
    found = []
    for row in result["cells"]:
        for way in ("compensator", "alignment", "both"):
            change = row.get(way, {}).get("to", {}).get("alone", {}).get(score)
            if change and min(worse * change[1], worse * change[2]) > 0:
                found.append(f"{row['method']}, degree {row['degree']}, {WAYS[way]}: {between(change, 4)}")
    return found


def compared(result: dict[str, Any]) -> list[str]:
    """Return paired differences between the ways, per degree."""
    lines = [
        "| method | degree | both, less compensator: gap · 1000 | log-loss | alignment, less compensator: gap · 1000 "
        "| log-loss |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in (row for row in result["cells"] if "both" in row):
        first, second = row["both"]["to"]["compensator"], row["compensator"]["to"]["alignment"]
        turned = {score: [-each for each in (one[0], one[2], one[1])] for score, one in second.items()}
        lines.append(
            f"| {row['method']} | {row['degree']} | {between(first['gap'], 2, 1000)} | {between(first['log_loss'], 3)} "
            f"| {between(turned['gap'], 2, 1000)} | {between(turned['log_loss'], 3)} |"
        )
    return lines


def counts_table(result: dict[str, Any]) -> list[str]:
    """Return per way and degree the share of the gap that is closed, by the number of images."""
    counts = sorted({row["images"] for row in result["by_count"]})
    lines = ["| way | degree | " + " | ".join(map(str, counts)) + " |", "| --- | ---: |" + " ---: |" * len(counts)]
    for way, degree in dict.fromkeys((row["way"], row["degree"]) for row in result["by_count"]):
        of = {
            row["images"]: digits(row["closed"], 0, 100) + " %"
            for row in result["by_count"]
            if (row["way"], row["degree"]) == (way, degree)
        }
        lines.append(f"| {WAYS[way]} | {degree} | " + " | ".join(of.get(count, "–") for count in counts) + " |")
    return lines


def across_table(result: dict[str, Any]) -> list[str]:
    lines = [
        "| fitted on | measured on | images | gap · 1000 | closed | change of the gap · 1000 | once checked |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in result["across"]:
        closed = f"{100 * row['closed']:.0f} %" if row["used"] else "refused"
        kinds = f"{row['fitted_on']} | {row['measured_on']}"
        lines.append(
            f"| {kinds} | {row['images']} | {1000 * row['gap']:.2f} | {closed} | {between(row['gap_change'], 2, 1000)} "
            f"| {'kept' if row['used_once_checked'] else 'refused'} |"
        )
    return lines


def across_words(result: dict[str, Any]) -> str:
    worse = [row for row in result["across"] if row["used"] and row["gap_change"][1] > 0]
    let_through = [row for row in worse if row["used_once_checked"]]
    if not worse:
        return "No map is worse than none beyond the interval on any kind of images."
    return (
        f"Worse than without it, beyond the interval: {named(worse)}. The fifths held out cannot see that: they are of "
        "the kind that was fitted on, and squares of the same 13 photographs. *Once checked*: what `--check` says of "
        "as many other images of the kind that is measured, and of other photographs. Of those that are worse it "
        f"keeps {named(let_through) or 'none'}."
    )


def named(rows: Sequence[dict[str, Any]]) -> str:
    """Return which maps meet which images."""
    return ", ".join(f"{row['measured_on']} by {row['fitted_on']}" for row in rows)


def changed(row: dict[str, Any]) -> str:
    """Return in words what an alignment changes of an engine's answers, and what the cells do not tell apart."""
    words = []
    for score, name in (("divergence", "the divergence"), ("gap", "the feature gap")):
        _, low, high = row["change"][score]
        told = "is lower" if high < 0 else "is higher" if low > 0 else "is not told apart from that without"
        words.append(f"{name} {told}")
    return f"With the alignment of {row['fitted_on']} cells: {'; '.join(words)}."


def engines_part(engines: dict[str, Any]) -> list[str]:
    """Return what was measured in engines; what was not is said."""
    lines = ["## In engines", ""]
    if "merged" in engines:
        part = engines["merged"]
        lines += [
            "Merged into the heads of a bundle: ONNX Runtime's logits against torch's, float32, "
            f"{part['images']} cells.",
            "",
            f"| degree | cells within {part['allowed']:g} | largest of these | others | without alignment | tie |",
            "| ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        for row in part["degrees"]:
            others = [", ".join(f"{each[way]:.3f}" for each in row["beyond"]) or "–" for way in ("with", "without")]
            ties = "; ".join(
                f"cell {each['cell']}, block {each['block']}: {each['margin']:.1e}" for each in row["beyond"]
            )
            lines.append(
                f"| {row['degree']} | {row['near']} | {row['difference']:.1e} | {others[0]} | {others[1]} | {ties} |"
            )
        lines += [
            "",
            "Others: two pairs of tokens are as similar but for rounding, and another one was merged. *Tie*: by how "
            "little the least similar pair that merges beats the next one, as cosines; below 1 float32 has steps of "
            "6.0e-08.",
            "",
        ]
    if "latency" in engines:
        part = engines["latency"]
        ratio, ms = part["ratio"], part["ms"]
        lines += [
            f"Latency at degree {part['degree']} with the alignment in the head, over that without, in turns, "
            f"{part['rounds']} rounds: {ratio[0]:.4f} ({ratio[1]:.4f} to {ratio[2]:.4f}); medians "
            f"{ms['with'][0]:.1f} and {ms['without'][0]:.1f} ms, "
            f"on {part['machine']['cores']} cores of {part['machine']['processor']}, load "
            f"{part['machine']['load_average']}. The two graphs "
            + ("have the same nodes." if part["same_nodes"] else "differ in their nodes."),
            "",
        ]
    if "int8" in engines:
        part = engines["int8"]
        lines += [
            "INT8 in every layer, ranges of 64 cells, with the compensator, at degree "
            f"{part['degree']}; alignments fitted on the device against float32's degree 0, measured on "
            f"{part['unseen']:,} cells that nothing learned from. Divergence: Kullback-Leibler, from float32's answers "
            "at degree 0. Changes are paired.",
            "",
            "| engine | alignment on | divergence · 1000 | change | gap · 1000 | change | same class, % | change |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in part["rows"]:
            values = []
            for score, factor in (("divergence", 1000), ("gap", 1000), ("agreement", 100)):
                change = between(row["change"][score], 2, factor) if "change" in row else ""
                values.append(f"{factor * row[score][0]:.2f} | {change}")
            fitted = f"{row['fitted_on']} cells" if row["fitted_on"] else "–"
            lines.append(f"| {row['precision']} | {fitted} | " + " | ".join(values) + " |")
        lines += ["", *(changed(row) for row in part["rows"] if "change" in row), ""]
    if "patches" in engines:
        part = engines["patches"]
        closed = [
            f"{1 - row['aligned_patch_gap'] / row['patch_gap']:.0%} of at most "
            f"{1 - row['least_patch_gap'] / row['patch_gap']:.0%} at {row['degree']}".replace("%", " %")
            for row in part["rows"]
        ]
        lines += [
            f"Of the gap between features of patches, one map for all patches, fitted on {part['fitted_on']} cells, "
            f"closes {', '.join(closed)} ({part['measured_on']} test cells; patches that merged share a row, so no map "
            "closes more). A compensator trained with `--loss patch` closes more ([results]"
            "(results.md#what-a-gpus-budget-does)), and adds no product per patch: an alignment of patches is not "
            "offered.",
            "",
        ]
    if missing := [part for part in ("merged", "latency", "int8", "patches") if part not in engines]:
        lines += [f"Not measured: {', '.join(missing)}.", ""]
    return lines


def page(result: dict[str, Any], engines: dict[str, Any]) -> str:
    machine, dense, shares = result["machine"], result["dense"], result["classes"]["shares"]
    at = next((row for row in result["cells"] if (row["method"], row["degree"]) == ("merge", CROSSED)), {})
    lines = [
        "# Alignment: results",
        "What an [alignment](concepts.md#alignment) is worth, alone and on top of a compensator, and where it is not. "
        "Made by `benchmarks/alignment_measure.py`, `alignment_engines.py` and `alignment_page.py`; the last of them "
        "writes this page.",
        f"Measured on {machine['processor']}, {machine['cores']} cores, {machine['measured']}.",
        "",
        f"The quickstart's ViT-S/14 and head, with a compensator that was trained as the quickstart does, "
        f"{result['steps']} steps. Fitted on "
        f"{result['fitted_on']} of the 820 cells that the quickstart learns from and chooses on, three draws; measured "
        f"on {result['unseen']:,} cells that nothing learned from. Behind ±: half the range of the draws. "
        f"{result['classes']['cells'][1]} of these are defective, of all cells {100 * shares[1]:.0f} %: means are "
        "weighed by class. "
        "*Closed*: share of the gap of compression alone. *Recall*: the same cell found again among all cells' dense "
        "features. Intervals are 95 %, paired by cell. Dense: accuracy "
        f"{100 * dense['accuracy'][0]:.1f} %, log-loss {dense['log_loss'][0]:.3f}.",
    ]
    for method in METHODS:
        measured = [row for row in result["cells"] if row["method"] == method]
        missing = sorted(set(DEGREES) - {row["degree"] for row in measured})
        lines += ["", f"## {method.capitalize()}", ""]
        lines += cells_table(result, method) if measured else []
        if missing:
            lines += ["", f"Not measured: degrees {', '.join(map(str, missing))}."]
    if "both" in at:
        change = at["both"]["to"]["dense"]["log_loss"]
        within = "within" if change[0] <= NEAR_DENSE else "not within"
        lines += [
            "",
            f"With compensator and alignment the log-loss at degree {CROSSED} is {change[0]:+.4f} "
            f"({between(change, 4)}) from dense: the mean is {within} {NEAR_DENSE} of it.",
        ]
    lines += [
        "",
        "## Which one wins",
        "Paired differences; below zero the first one is better.",
        "",
        *compared(result),
        "",
    ]
    for score, name in (("gap", "gap"), ("recall", "recall"), ("accuracy", "accuracy"), ("log_loss", "log-loss")):
        bad = against(result, score)
        lines.append(
            f"- {name} worse than compression alone, beyond the interval: {'; '.join(bad) if bad else 'nowhere'}."
        )
    lines += [
        "",
        "## By the number of images",
        "![Share of the gap closed by the number of images](images/alignment-images.svg)",
        "",
        *counts_table(result),
        "",
        "Where the check on images held out refuses the map, it closes nothing. "
        "Images beyond 820 are functional cells alone, which are what is left."
        + ("" if any(row["images"] > 820 for row in result["by_count"]) else " 1,600 were not measured."),
        "",
        "## Across kinds of images",
        f"Fitted on 200 images of a kind ({', '.join(DOMAINS)}), or on all three; measured on others, degree "
        f"{CROSSED}, merging, no compensator.",
        "",
        *(across_table(result) if result["across"] else ["Not measured."]),
        "",
        *([across_words(result)] if result["across"] else []),
        "",
        *engines_part(engines),
    ]
    return "\n".join(lines).rstrip() + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the share of the gap closed over the number of images, per way and degree."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tocom"  # the same names inside the file every time
    from matplotlib import pyplot

    ways = [way for way in ("alignment", "both") if any(row["way"] == way for row in result["by_count"])]
    degrees = sorted({row["degree"] for row in result["by_count"]})
    figure, panels = pyplot.subplots(
        1, len(ways), figsize=(4.5 * len(ways), 3), sharey=True, layout="constrained", squeeze=False
    )
    for axes, way in zip(panels[0], ways, strict=True):
        for number, degree in enumerate(degrees):
            rows = [row for row in result["by_count"] if (row["way"], row["degree"]) == (way, degree)]
            if rows:
                images, colour = [row["images"] for row in rows], pyplot.cm.viridis(number / len(degrees))
                means = [100 * statistics.mean(row["closed"]) for row in rows]
                axes.plot(images, means, "o-", color=colour, markersize=3, label=f"degree {degree}")
                ends = ([100 * pick(row["closed"]) for row in rows] for pick in (min, max))
                axes.fill_between(images, *ends, color=colour, alpha=0.2)
        counts = sorted({row["images"] for row in result["by_count"]})
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set(title=WAYS[way], xlabel="images fitted on", xscale="log", xticks=counts)
        axes.set_xticklabels(map(str, counts), fontsize=8)
        axes.minorticks_off()
    panels[0][0].set_ylabel("feature gap closed, %")
    panels[0][0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    engines = json.loads(ENGINES.read_text(encoding="utf-8")) if ENGINES.exists() else {}
    draw(result, PICTURE)
    PAGE.write_text(page(result, engines), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The section of docs/benchmarks.md about families of schedules: see families_measure.py and families_engines.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tocom.formats.families import EVERY

__all__ = ["section"]

SPACED = "spaced:1,4,7,10"
_TRIED = (
    "So the spaced compensator closes less of its own gap at 16 and 20, though it leaves about as much. Can another "
    "family do better? On 120 held-out cells, without a compensator (`benchmarks/families_tried.py`; the last two are "
    "blocks 1, 4, 7, 10 that remove the same share of their tokens each, or half-way from there to the same number):"
)
_MISSED = (
    "None closes more than `every` with the same recipe at both degrees, so the family stays as it is. Not trained: "
    "unequal merges, and draws that favour high degrees."
)
_TRAINED = "And with one, a seed of each, the same images and steps:"


def section(found: Mapping[str, Any]) -> str:
    """Return the section, from the JSON files by name."""
    lines = [
        "## Families of schedules",
        "Merging in every block, against merging as much in four ([Families](concepts.md#families-of-schedules)). The "
        "gap is one minus the cosine of the pooled features to the dense model's; recall, how often a cell is found "
        "again among the dense features of all.",
    ]
    if "families" in found:
        lines += _features(found["families"])
    else:
        lines.append("Features: not measured. `python benchmarks/families_measure.py` does it.")
    if "families-tried" in found:
        lines += _tried(found["families-tried"])
    engines = found.get("families-engines", {})
    for part, write in (("latency", _latency), ("layers", _layers)):
        if engines.get(part):
            lines += write(engines[part], engines["degree"])
        else:
            lines.append(f"{part.capitalize()}: not measured. `python benchmarks/families_engines.py --only {part}`.")
    return "\n\n".join(lines)


def _features(result: Mapping[str, Any]) -> list[str]:
    machine = result["machine"]
    table = [
        "| method | degree | family | blocks | GMACs | gap | recall, % | gap · 1000, change | recall, points |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(result["families"], key=lambda row: (row["method"], row["degree"])):
        for family in (EVERY, SPACED):
            own = row[family]
            changes = "– | –"
            if family == SPACED:
                gap, recall = row["gap_difference"], row["recall_difference"]
                changes = (
                    f"{1e3 * gap[0]:+.2f} [{1e3 * gap[1]:+.2f}, {1e3 * gap[2]:+.2f}] | "
                    f"{100 * recall[0]:+.1f} [{100 * recall[1]:+.1f}, {100 * recall[2]:+.1f}]"
                )
            table.append(
                f"| {row['method']} | {row['degree']} | `{family}` | {sum(r > 0 for r in own['removed'])} "
                f"| {own['macs'] / 1e9:.2f} | {own['gap'][0]:.5f} | {100 * own['recall']:.1f} | {changes} |"
            )
    closed = [
        "| degree | gap alone, `every` | `spaced` | closed, `every` | `spaced` | gap with it, `every` | `spaced` "
        "| gap with it · 1000, change |",
        "| ---: " * 8 + "|",
    ]
    alone = {row["degree"]: row for row in result["families"] if row["method"] == "merge"}
    for row in sorted(result["compensated"], key=lambda row: row["degree"]):
        plain = alone[row["degree"]]
        shares = (" / ".join(f"{100 * each:.0f}" for each in row[family]["closed"]) for family in (EVERY, SPACED))
        gaps = (sum(row[family]["gaps"]) / len(row[family]["gaps"]) for family in (EVERY, SPACED))
        closed.append(
            f"| {row['degree']} | {plain[EVERY]['gap'][0]:.5f} | {plain[SPACED]['gap'][0]:.5f} | "
            + " | ".join(f"{each} %" for each in shares)
            + " | "
            + " | ".join(f"{gap:.5f}" for gap in gaps)
            + " | {:+.2f} [{:+.2f}, {:+.2f}] |".format(*(1e3 * end for end in row["left_difference"]))
        )
    return [
        f"The quickstart's ViT-S/14 on {result['cells']:,} cells that nothing learned from, weighed by class; "
        f"differences paired by cell, with 95 % intervals ({machine['cores']} cores of {machine['processor']}, torch "
        f"{machine['versions']['torch']}, {machine['measured']}).",
        "\n".join(table),
        "Then with a compensator that was trained for its own family, 300 steps of the quickstart's recipe, three "
        "seeds; the gap is the mean of the seeds.",
        "\n".join(closed),
    ]


def _tried(result: Mapping[str, Any]) -> list[str]:
    degrees = sorted({row["degree"] for row in result["alone"]})
    titles = " | ".join(f"GMACs, {degree} | gap · 1000" for degree in degrees)
    alone = [f"| family | {titles} |", "| --- |" + " ---: | ---: |" * len(degrees)]
    for family in dict.fromkeys(row["family"] for row in result["alone"]):
        rows = {row["degree"]: row for row in result["alone"] if row["family"] == family}
        cells = (f"{rows[degree]['macs'] / 1e9:.2f} | {1e3 * rows[degree]['gap'][0]:.2f}" for degree in degrees)
        alone.append(f"| {family} | {' | '.join(cells)} |")
    trained = ["| family | recipe | degree | gap · 1000 | left | closed |", "| --- | --- |" + " ---: |" * 4]
    for row in result["trained"]:
        gap, left = (f"{1e3 * row[name][0]:.2f}" for name in ("gap", "left"))
        recipe = ", ".join(f"{name}={value}" for name, value in row["changes"].items()) or "the same"
        recipe += "" if row["scale"] == 1 else f", deltas {row['scale']:g} times as strong"
        closed = f"{100 * row['closed']:.0f} %"
        trained.append(f"| `{row['family']}` | {recipe} | {row['degree']} | {gap} | {left} | {closed} |")
    return [_TRIED, "\n".join(alone), _TRAINED, "\n".join(trained), _MISSED]


def _latency(result: Mapping[str, Any], degree: int) -> list[str]:
    machine = result["machine"]
    table = ["| backend | batch | family | ms | of `every` |", "| --- | ---: | --- | ---: | ---: |"]
    for row in result["rows"]:
        ratio = "–" if row["family"] == EVERY else "{:.3f} [{:.3f}, {:.3f}]".format(*row["ratio"])
        table.append(f"| {row['backend']} | {row['batch']} | `{row['family']}` | {row['ms'][0]:.1f} | {ratio} |")
    return [
        f"DeiT-S at degree {degree}, in turns, medians with 95 % intervals ({machine['cores']} cores of "
        f"{machine['processor']}, {machine['measured']}):",
        "\n".join(table),
    ]


def _layers(result: Mapping[str, Any], degree: int) -> list[str]:
    table = ["| ops | family | layers | op plugin layers | MB |", "| --- | --- | ---: | ---: | ---: |"]
    for row in result["engines"]:
        size = f"{row['content_bytes'] / 1e6:.0f}"
        ops = "op plugin" if row["lowering"] == "plugin" else "TensorRT's own"
        table.append(f"| {ops} | `{row['family']}` | {row['layers']} | {row['op_plugin_layers']} | {size} |")
    return [
        f"Its TensorRT-RTX engines at degree {degree}. Lowered to TensorRT's own ops (`tocom build --lowering native`) "
        "a merge is about 170 layers, so that fewer merges halve the engine; with the op plugin it is two. How long "
        "they take on a GPU was not measured:",
        "\n".join(table),
    ]

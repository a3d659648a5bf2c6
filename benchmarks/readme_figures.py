"""Write the README's figures from a quickstart's ``figures.json``.

    make quickstart
    python benchmarks/readme_figures.py quickstart-output

copies the figures to ``benchmarks/results/quickstart.json`` and the picture to ``docs/images/quickstart.png``, and
rewrites the README between its two markers. Without an argument it rewrites the README from the committed JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from measuring import between

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "quickstart.json"
PICTURE = ROOT / "docs" / "images" / "quickstart.png"
BEGIN, END = "<!-- figures: written by benchmarks/readme_figures.py -->", "<!-- end of figures -->"


def section(figures: dict[str, Any]) -> str:
    """Return the README's part between the markers."""
    machine, cells = figures["machine"], figures["cells"]
    minutes = sum(figures["seconds"].values()) / 60
    dense, fastest = figures["degrees"][0], figures["degrees"][-1]
    lines = [
        BEGIN,
        "![Search and accuracy over latency, and the stream under a stepping budget](docs/images/quickstart.png)",
        "",
        f"Top left, the gain: at degree {fastest['degree']} an image takes {fastest['p50_ms']:.0f} ms in place of "
        f"{dense['p50_ms']:.0f}. Its features still find {fastest['found']['value']:.0%} of the photographs in an "
        "index that the dense model made; merging tokens without the compensator is as fast and finds "
        f"{fastest['found_without_compensator']['value']:.0%}. Below: the budget (black) steps down and up, and the "
        "runtime changes the degree (violet) so that the latencies (dots) stay under it.",
        "",
        f"What it printed on {machine['cores']} cores of an {machine['processor']} processor under ONNX Runtime "
        f"{machine['onnxruntime']} (batch 1; {cells['test']} test cells, seen by no training, though "
        "the number of its steps was chosen with them in view; "
        f"{minutes:.1f} minutes after the installation):",
        "",
        "| degree | GMACs | the same cell found again | found, merging alone | accuracy | accuracy, merging alone "
        "| feature gap closed "
        "| p50 ms | p95 ms |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in figures["degrees"]:
        gap = row["feature_gap"]
        closed = "–" if gap is None else f"{1 - gap['with_compensator'] / gap['without_compensator']:.0%}"
        shares = (row[f"{key}{way}"] for key in ("found", "accuracy") for way in ("", "_without_compensator"))
        shown = [f"{share['value']:.0%} ({share['low']:.0%}–{share['high']:.0%})" for share in shares]
        lines.append(
            f"| {row['degree']} | {row['macs'] / 1e9:.2f} | {' | '.join(shown)} | {closed} | "
            f"{row['p50_ms']:.1f} | {row['p95_ms']:.1f} |"
        )
    ratio = figures["bundle_bytes"] / figures["dense_bytes"]
    difference = max(row["largest_difference_to_torch"] for row in figures["degrees"])
    lines += [
        "",
        f"The bundle of {len(figures['degrees'])} degrees takes {figures['bundle_bytes'] / 2**20:.0f} MiB, {ratio:.2f} "
        f"times the dense ONNX alone. Largest difference of a logit or feature to torch on real images, any degree: "
        f"{difference:.0e}. *Found again*: the degree's feature of a cell, searched among {figures['gallery']} "
        "features of the dense model, an index that exists already; 95 % intervals. Accuracy is that of the dense "
        f"model's head, nothing re-tuned; {cells['test']} cells cannot tell the accuracies of neighbouring degrees "
        "apart.",
        "",
        "| budget ms | degree taken most | p95 ms | met |",
        "| ---: | ---: | ---: | ---: |",
        *(
            f"| {row['budget_ms']:.1f} | {row['degree']} | {row['p95_ms']:.1f} | {row['met']:.0%} |"
            for row in figures["budgets"]
        ),
        END,
    ]
    return "\n".join(lines)


def rewrite(readme: str, figures: dict[str, Any]) -> str:
    """Return the README with the part between the markers written again."""
    return between(readme, BEGIN, END, section(figures))


def main() -> None:
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "figures.json", RESULTS)
        shutil.copyfile(folder / "quickstart.png", PICTURE)
    readme = ROOT / "README.md"
    figures = json.loads(RESULTS.read_text(encoding="utf-8"))
    readme.write_text(rewrite(readme.read_text(encoding="utf-8"), figures), encoding="utf-8")


if __name__ == "__main__":
    main()

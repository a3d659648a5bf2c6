"""Electroluminescence photographs of solar cells, from the PyPI package ``elpv-dataset`` (CC BY-NC-SA 4.0).

2,624 cells, 300 × 300 pixels, each with the probability that it is defective (0, 1/3, 2/3 or 1), by Deitsch et al.,
Solar Energy 185 (2019). The licence allows no commercial use; what the quickstart learns from the cells is for trying
out alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tocom.errors import DataError
from tocom.quickstart.weights import installed_file

__all__ = ["HELD_OUT", "LABELS", "TEST", "TRAIN", "Cell", "Split", "split_cells"]

LABELS = ["functional", "defective"]
# How many cells the quickstart takes for each part; what measures beside it must part them alike.
TRAIN, HELD_OUT, TEST = 700, 120, 220


@dataclass(frozen=True)
class Cell:
    """A photograph and its class: 1 where the probability of a defect is at least one half."""

    path: Path
    label: int


@dataclass(frozen=True)
class Split:
    """Disjoint parts: ``train`` fits head and compensator, ``held_out`` chooses, ``test`` is only reported.

    ``rest`` is what no part took: more images for a compensator, which needs no labels.
    """

    train: list[Cell]
    held_out: list[Cell]
    test: list[Cell]
    rest: list[Cell]


def split_cells(train: int, held_out: int, test: int, seed: int = 0) -> Split:
    """Return a seeded split, each part with the data set's share of defective cells.

    The package does not say which cells are of one module, so cells of one module may stand in different parts.

    Raises:
        DataError: The package is not installed, or holds fewer cells than asked for.
    """
    table = installed_file("elpv-dataset", "elpv_dataset/data/labels.csv")
    cells = []
    for line in table.read_text(encoding="utf-8").splitlines():
        name, probability, _ = line.split()
        cells.append(Cell(table.parent / name, int(float(probability) >= 0.5)))
    wanted = train + held_out + test
    if wanted > len(cells):
        raise DataError(f"The split needs {wanted} cells, elpv-dataset has {len(cells)}. Ask for fewer.")
    generator = random.Random(seed)
    generator.shuffle(cells)
    share = sum(cell.label for cell in cells) / len(cells)
    pools = {label: [cell for cell in cells if cell.label == label] for label in (0, 1)}
    parts = []
    for count in (train, held_out, test):
        defective = round(count * share)
        part = [pools[1].pop() for _ in range(defective)] + [pools[0].pop() for _ in range(count - defective)]
        generator.shuffle(part)
        parts.append(part)
    return Split(*parts, rest=pools[0] + pools[1])

"""What images said of an alignment's maps, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from tocom.cli.app import table_of

if TYPE_CHECKING:
    from tocom.formats.device_alignment import FittedDegree

__all__ = ["alignment_table"]

# Fewer images than these are refused; images that differ in fewer directions are not, but hardly say more.
_FEW_DIRECTIONS = 24


def alignment_table(what: str, images: int, checked_on: int, degrees: Mapping[int, FittedDegree]) -> Table:
    """Return a row per degree, and below them what is to be said of the images."""
    judged = f"judged on {checked_on} others" if checked_on else "each fifth judged by a map of the others"
    rows = []
    for degree, each in degrees.items():
        refused = "" if each.used else " (no help shown: left out)"
        closed = Text.assemble(f"{100 * each.closed:.0f} %", (refused, "red"))
        rows.append((degree, f"{each.gap:.5f}", f"{each.aligned_gap:.5f}", closed, f"{each.strength:g}"))
    columns = ("degree", "feature gap", "aligned", "closed", "strength")
    table = table_of(columns, rows, title=f"{what}: {images} images; {judged}")
    fewest = min((each.directions for each in degrees.values()), default=_FEW_DIRECTIONS)
    if fewest < _FEW_DIRECTIONS:
        table.caption = (
            f"The images are so alike that their features differ in {fewest} directions only: a large penalty was "
            "taken, and in all other directions features stay as they are. Give images that differ as those to come do."
        )
    return table

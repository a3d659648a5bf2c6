"""The page of versions says what pyproject.toml allows, and that its lowest versions are the ones that were tested."""

from __future__ import annotations

import re
from pathlib import Path

from tocom.system.dependencies import requirements

PAGE = Path(__file__).parents[2] / "docs" / "versions.md"


def test_the_lowest_versions_on_the_page_are_the_declared_ones() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    tested = {row[0]: row for row in rows[2:]}
    assert {"Python", "numpy", "torch", "timm", "onnx", "onnxruntime", "openvino", "typer"} <= set(tested)
    declared = {each.package: each for each in requirements()}
    for package, (_, allowed, lowest, *newest) in tested.items():
        if package == "Python":
            continue
        assert allowed.strip("`") == (declared[package].version or "any"), package
        floor = re.search(r"[>=]=([\d.]+)", allowed)
        assert floor is None or re.match(rf"{re.escape(floor[1])}(\.|$)", lowest), (package, lowest)
        assert all(declared[package].met_by(version) for version in newest), package

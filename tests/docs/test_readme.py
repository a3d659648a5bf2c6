"""The README's figures are those of the committed run, and its two commands exist."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme_figures  # noqa: E402


def test_figures_are_those_of_the_committed_run():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    figures = json.loads(readme_figures.RESULTS.read_text(encoding="utf-8"))
    assert readme_figures.section(figures) in readme
    assert readme_figures.PICTURE.stat().st_size > 10_000


def test_the_readme_s_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in ("quickstart", "test"):
        assert f"make {target}" in readme
        assert f"\n{target}:" in makefile

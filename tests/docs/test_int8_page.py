"""The INT8 page's tables are those of the committed results."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "int8.json", ROOT / "docs" / "int8.md"


def test_the_tables_come_from_the_results(tmp_path: Path) -> None:
    if not RESULTS.exists():
        assert PAGE.read_text().count("Not measured") == 4
        pytest.skip("not measured yet, and the page says so")
    page = tmp_path / "page.md"
    shutil.copy(PAGE, page)
    command = [sys.executable, str(ROOT / "benchmarks" / "int8.py"), "--page-only"]
    done = subprocess.run([*command, "--page", str(page)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert page.read_text() == PAGE.read_text()

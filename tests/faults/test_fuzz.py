"""A few seconds of what ``make fuzz`` does for minutes, and what it found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tocom.errors import BundleError, OutputError

SCRIPT = Path(__file__).parent / "fuzz_readers.py"


@pytest.mark.parametrize("reader", ["manifest", "profile", "alignment", "compensator"])
@pytest.mark.fault(
    "manifests, profiles, on-device alignments and compensators as a fuzzer makes them",
    outcome="an object or one of our errors, in one line; no other exception, no hang, no memory spent",
)
def test_a_short_run_is_clean(reader: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python; hypothesis covers the same readers")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), reader, "--seconds", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ran = re.search(r"number_of_executed_units:\s+(\d+)", done.stderr)
    assert ran is not None
    assert int(ran[1]) > 50


@pytest.mark.fault(
    "line breaks, escape sequences or megabytes in what an error quotes", outcome="one printable line of bounded length"
)
def test_an_error_is_one_printable_line_whatever_it_quotes() -> None:
    for kind in (BundleError, OutputError):
        hostile = kind("name 'a\n2026 INFO all is well\x1b[2J\u2028b' is wrong … ≤ é")
        assert str(hostile) == r"name 'a\n2026 INFO all is well\x1b[2J\u2028b' is wrong … ≤ é"
        assert len(str(kind("x" * 10**7))) < 2100

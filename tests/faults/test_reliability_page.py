"""The page of faults is what the tests say, and names every fault that was promised."""

from __future__ import annotations

from pathlib import Path

import pytest
from reliability_page import PAGE, TESTS, faults, page

PROMISED = (
    "truncated", "empty", "flipped", "swapped", "missing", "extra files", "wrong type", "out of range", "sizes",
    "engine for another device", "op plugin missing",
    "no room on the disk during an export", "no room on the disk during a build",
    "no room on the disk during training", "no room on the disk during a calibration",
    "out of memory at the nth engine",
    "SIGKILL at random points of an export", "SIGKILL at random points of a build",
    "SIGKILL at random points of a calibration", "SIGKILL at random points of training",
    "a backend that hangs", "gives NaN", "raises in the middle of a stream", "a device that is lost and comes back",
    "a clock that goes backwards", "a reload with a corrupt bundle while serving", "eight threads opening and closing",
    "a build that hangs", "crash, a kill or an exit in a build", "a pickle that runs code", "secrets", "no trusted key",
    "an earlier build of tocom wrote",
    "exchanged or rewritten between its hash and its loading", "that takes too much memory",
)  # fmt: skip


def test_the_page_is_what_the_script_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/faults/reliability_page.py"


@pytest.mark.parametrize("promised", PROMISED)
def test_every_promised_fault_has_a_test_in_the_default_suite(promised: str) -> None:
    assert any(promised in fault.name and fault.default for fault in faults())


def test_no_fault_is_there_twice_and_none_breaks_the_table() -> None:
    found = faults()
    assert len({fault.name for fault in found}) == len(found)
    for fault in found:
        assert "|" not in fault.name + fault.outcome
        assert (TESTS / fault.test.split("::")[0]).is_file()
        assert fault.section


def test_the_reader_sees_every_marker() -> None:
    """A marker where the script does not look, such as on a method, would be lost in silence."""
    written = sum(
        path.read_text(encoding="utf-8").count("@pytest.mark.fault(")
        for path in Path(TESTS).rglob("test_*.py")
        if path != Path(__file__)
    )
    assert written == len(faults())

"""What ``make test-aarch64`` says where a package cannot be had: one line, and no skip."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import check
from machine import NotHere, fetch


def test_a_tool_that_is_missing_is_named():
    with pytest.raises(NotHere, match=r"^apt-gone is needed and cannot be started \(No such file or directory\)"):
        fetch("apt-gone", "update")


def test_a_tool_that_fails_is_told_by_its_last_error():
    with pytest.raises(NotHere, match=r"^sh failed at .*: E: gone$"):
        fetch("sh", "-c", "{ echo W: a; echo E: gone; exit 1; } >&2")


def test_the_command_fails_in_one_line(monkeypatch, capsys, tmp_path):
    def none(folder):
        raise NotHere("apt-get failed at 'update': no network")

    monkeypatch.setattr(check, "Machine", none)
    monkeypatch.setattr(sys, "argv", ["check.py", "--folder", str(tmp_path)])
    assert check.main() == 1
    assert capsys.readouterr().err == "test-aarch64: apt-get failed at 'update': no network\n"

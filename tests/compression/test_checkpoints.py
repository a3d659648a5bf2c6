"""Checkpoints as people have them: each kind of the table computes what its own library computes, or is refused."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
from checkpoint_kinds import KINDS, Kind, outcome
from checkpoints_page import PAGE, _plain


def test_the_table_is_broad() -> None:
    assert len([kind for kind in KINDS if not kind.refusal]) >= 25
    assert len(set(map(_title, KINDS))) == len(KINDS)


NEEDS = {"Hugging Face": "transformers", "open_clip": "open_clip", "peft": "peft"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.library}: {kind.what}")
def test_every_kind(kind: Kind, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS.get(kind.library, "torch"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that make the checkpoints
        result = outcome(kind, tmp_path)  # which compares
    if kind.refusal:
        assert re.search(kind.refusal, result.words), result.words
    assert "\n" not in result.words
    text = PAGE.read_text(encoding="utf-8")
    assert _title(kind) in text
    assert _plain(result, str(tmp_path)) in text, "run python tests/compression/checkpoints_page.py"


def _title(kind: Kind) -> str:
    return f"| {kind.library} | {kind.what} |"

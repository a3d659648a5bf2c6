"""The page of supported models is what the tests' own table gives."""

from __future__ import annotations

import pytest
from models_page import FAMILIES, PAGE, REFUSED, page


@pytest.mark.skipif(not all(family.known for family in FAMILIES), reason="this timm lacks models of the page")
def test_the_page_is_what_the_script_writes() -> None:
    text = page()
    assert PAGE.read_text(encoding="utf-8") == text, "run python tests/training/models_page.py"
    assert all(f"`{entry.name}`" in text for entry in (*FAMILIES, *REFUSED))

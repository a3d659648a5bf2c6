"""The public names: what the roots hand on is what the API page documents."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOTS = ("tocom", "tocom.export", "tocom.runtime", "tocom.calibration")


def documented() -> set[str]:
    """Return the full names on the API page, the error tree left out: it is one module."""
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.on_page_markdown((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    return set(re.findall(r"^::: ([\w.]+)$", page, flags=re.MULTILINE)) - {"tocom.errors"}


def test_the_api_page_documents_every_public_name_and_no_other() -> None:
    public = set()
    for name in ROOTS:
        root = importlib.import_module(name)
        objects = {listed: getattr(root, listed) for listed in root.__all__ if listed != "__version__"}
        public |= {f"{found.__module__}.{listed}" for listed, found in objects.items()}
    assert documented() == public


@pytest.mark.parametrize("name", ROOTS)
def test_no_public_name_hides_a_module(name: str) -> None:
    root = importlib.import_module(name)
    assert [listed for listed in root.__all__ if importlib.util.find_spec(f"{name}.{listed}") is not None] == []


@pytest.mark.parametrize("name", ROOTS)
def test_a_name_that_a_root_does_not_have_is_answered_with_those_that_it_has(name: str) -> None:
    root = importlib.import_module(name)
    with pytest.raises(
        AttributeError, match=rf"module '{name}' has no attribute 'nothing'; it has .*{root.__all__[0]}"
    ):
        root.nothing  # noqa: B018
    assert set(dir(root)) >= set(root.__all__)

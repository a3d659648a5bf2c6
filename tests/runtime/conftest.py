from __future__ import annotations

from pathlib import Path

import pytest
from small_bundles import SmallBundle, write_small_bundle


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> SmallBundle:
    """A bundle of degrees 0, 4, 8. Shared: tests that write beside it make their own."""
    return write_small_bundle(tmp_path_factory.mktemp("small") / "bundle")


@pytest.fixture
def own_bundle(tmp_path: Path) -> SmallBundle:
    return write_small_bundle(tmp_path / "bundle")

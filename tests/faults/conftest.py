from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_bundles import SmallBundle, write_small_bundle

# The models here are tiny: a second thread costs more than it brings, and tests run side by side.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep packed weights of tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOCOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def bundle(tmp_path: Path) -> SmallBundle:
    """A bundle of degrees 0, 4, 8 for one test to damage."""
    return write_small_bundle(tmp_path / "bundle")

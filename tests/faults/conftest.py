from __future__ import annotations

from pathlib import Path

import pytest
import torch
from own_cache import own_cache  # noqa: F401
from small_bundles import SmallBundle, write_small_bundle

# The models here are tiny: a second thread costs more than it brings, and tests run side by side.
torch.set_num_threads(1)


@pytest.fixture
def bundle(tmp_path: Path) -> SmallBundle:
    """A bundle of degrees 0, 4, 8 for one test to damage."""
    return write_small_bundle(tmp_path / "bundle")

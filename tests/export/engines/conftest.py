from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_engine_models import tiny_vit

from tocom.export import export
from tocom.export.engines.backend import find_device
from tocom.formats.bundle import Bundle


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """A bundle of a tiny ViT at degrees 0, 2 and 4, batch 1 to 4."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    export(tiny_vit(), path, degrees=[0, 2, 4], batch=(1, 2, 4), check=False)
    return path


@pytest.fixture
def bundle(exported, tmp_path) -> Bundle:
    """A copy of the tiny bundle, for a test to build in and to damage."""
    return Bundle(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture
def no_gpu():
    if find_device() is not None:
        pytest.skip("needs a machine without a GPU")

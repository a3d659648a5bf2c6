from __future__ import annotations

import pytest
import torch
from exported import CASES, Exported, make
from op_plugin_fixtures import op_plugin, op_plugin_cache, rtx  # noqa: F401

# The models here are tiny: a second thread costs more than it brings, and tests run side by side.
torch.set_num_threads(1)


@pytest.fixture(
    scope="session",
    params=[pytest.param(case, id=case.name, marks=[pytest.mark.slow] * case.slow) for case in CASES],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One bundle per kind of model. Shared: tests that change files copy them first."""
    return make(request.param, tmp_path_factory.mktemp("exported") / "bundle")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The bundle of the first case, for tests that need one of any kind."""
    return make(CASES[0], tmp_path_factory.mktemp("plain") / "bundle")

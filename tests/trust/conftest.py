from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

# Deadlines of hypothesis measure a shared machine, not the code.
settings.register_profile("tocom", deadline=None)
settings.load_profile("tocom")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep packed weights of tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOCOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield

from __future__ import annotations

from hypothesis import settings
from own_cache import own_cache  # noqa: F401

# Deadlines of hypothesis measure a shared machine, not the code.
settings.register_profile("tocom", deadline=None)
settings.load_profile("tocom")

"""The folder of everything that can be made again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Return the folder of everything that can be made again: ``$TOCOM_CACHE``, or ``tocom`` in the user's cache."""
    if chosen := os.environ.get("TOCOM_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tocom"

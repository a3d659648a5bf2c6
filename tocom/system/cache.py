"""The folder of everything that can be made again."""

from __future__ import annotations

import os
from pathlib import Path

from tocom.errors import OutputError

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Return the folder of everything that can be made again.

    ``$TOCOM_CACHE``, else ``$XDG_CACHE_HOME/tocom``, else ``~/.cache/tocom``.

    Raises:
        OutputError: None is set, and the account has no home.
    """
    if chosen := os.environ.get("TOCOM_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tocom"
    except RuntimeError as error:
        raise OutputError("This account has no home folder. Set TOCOM_CACHE to a writable folder.") from error

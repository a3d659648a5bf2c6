"""The sidecar of an engine: the JSON file beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tocom.formats.sealed_json import parse_json
from tocom.system.files import open_regular

__all__ = ["read_sidecar"]

_MAX_SIDECAR_BYTES = 4 << 20


def read_sidecar(path: Path) -> tuple[Any, str]:
    """Return the JSON content of an engine's sidecar, and the sha256 of the very bytes that it was read from.

    Raises:
        OSError: It is missing, or no regular file.
        ValueError: It is no valid JSON, or larger than 4 MiB.
    """
    with open_regular(path) as file:
        data = file.read(_MAX_SIDECAR_BYTES)
    return parse_json(data), hashlib.sha256(data).hexdigest()

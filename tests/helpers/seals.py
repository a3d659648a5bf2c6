"""A seal that holds after any bytes, for files that only a forger or a fault would write."""

from __future__ import annotations

import hashlib

__all__ = ["sealed_bytes"]


def sealed_bytes(body: bytes) -> bytes:
    """Return a file of ``body``, a JSON object without its last bracket, and the seal."""
    return body + b',\n  "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'

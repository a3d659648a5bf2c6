"""JSON that crosses machines: read within limits, and sealed, so that a change of any bit shows.

A sealed file ends with the member ``sha256``: the hash of every byte before it. It finds accidents, not attackers, who
can seal again; against those there are signatures (:mod:`tocom.formats.signatures`).
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from tocom.system.files import atomic_path

__all__ = ["parse_json", "parse_sealed", "sealed", "write_sealed_json"]

_MAX_DEPTH = 32
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SEAL = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n\Z')
_TAIL_BYTES = 96


def parse_json(data: bytes) -> Any:
    """Return what the bytes of a JSON file say.

    Raises:
        ValueError: They are not JSON, nest deeper than 32 levels, name a member twice, or hold NaN or infinity.
    """
    depth = _depth(data)
    if depth > _MAX_DEPTH:
        raise ValueError(f"it nests more than {_MAX_DEPTH} levels deep")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_members, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def sealed(content: dict[str, Any]) -> bytes:
    """Return ``content`` as indented JSON that ends with its seal. NaN and infinity are refused: they are not JSON."""
    members = {name: value for name, value in content.items() if name != "sha256"}  # of what was read, and changed
    body = json.dumps(members, indent=2, allow_nan=False).removesuffix("\n}").encode()
    return body + b',\n  "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def write_sealed_json(path: Path | str, content: dict[str, Any]) -> None:
    """Write ``content`` sealed, atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    data = sealed(content)
    with atomic_path(path) as beside:
        beside.write_bytes(data)


def parse_sealed(data: bytes) -> Any:
    """Return what the bytes of a sealed JSON file say.

    Raises:
        ValueError: They lack the seal, or the bytes before it have another hash; both are named. Or see
            :func:`parse_json`. The message goes on after the file's name.
    """
    found = _SEAL.search(data, max(0, len(data) - _TAIL_BYTES))
    if found is None:
        raise ValueError("lacks its seal, the last member 'sha256': it was cut off or changed")
    got = hashlib.sha256(data[: found.start()]).hexdigest()
    if got != found[1].decode():
        raise ValueError(f"was changed: its content has sha256 {got}, its seal says {found[1].decode()}")
    try:
        return parse_json(data)
    except ValueError as error:
        raise ValueError(f"is not valid JSON ({error})") from error


def _depth(data: bytes) -> int:
    """Return how deeply brackets nest, without building anything: the parser recurses."""
    depth = deepest = 0
    for bracket in _STRING.sub(b"", data).translate(None, _ALL_BUT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        # Readers differ in which one they take: what was checked must be what is used.
        raise ValueError("a member is named twice")
    return members


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")

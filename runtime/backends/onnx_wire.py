"""Where an ONNX file's tensors lie: reads and rewrites their external-data entries, without the onnx package.

An ONNX file is one protobuf message. Only the path model → graph → initializer → external_data is walked; every
other byte is passed through as it is. Field numbers are those of onnx.proto, which never change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["Tensor", "read_tensors", "rewrite_external_data"]

_GRAPH, _INITIALIZER, _DIMS, _EXTERNAL_DATA, _KEY, _VALUE = 7, 5, 1, 13, 1, 2
_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}

Change = Callable[[dict[str, str]], dict[str, str]]


@dataclass(frozen=True)
class Tensor:
    """An initializer: its dimensions, and where its bytes lie when they lie outside the file.

    Attributes:
        dims: Its dimensions.
        place: File name and offset of the bytes; None inside the ONNX file.
        bytes: Their count; 0 inside the ONNX file.
    """

    dims: tuple[int, ...]
    place: tuple[str, int] | None
    bytes: int


def read_tensors(model: bytes) -> list[Tensor]:
    """Return the initializers of an ONNX file.

    Raises:
        ValueError: The bytes are no protobuf message.
    """
    tensors = []
    for number, _, graph in _fields(model):
        if number != _GRAPH:
            continue
        for inner, _, content in _fields(graph):
            if inner == _INITIALIZER:
                tensors.append(_tensor(content))
    return tensors


def rewrite_external_data(model: bytes, change: Change) -> bytes:
    """Return the model with the external-data entries of every initializer replaced.

    Args:
        model: Bytes of an ONNX file.
        change: Gets an initializer's entries (``location``, ``offset``, ``length``, …), returns the new ones. Not
            called for initializers that lie in the file itself.

    Raises:
        ValueError: The bytes are no protobuf message.
    """
    return _rewrite(model, (_GRAPH, _INITIALIZER), change)


def _rewrite(message: bytes, path: tuple[int, ...], change: Change) -> bytes:
    if not path:
        return _rewrite_tensor(message, change)
    pieces = []
    for number, header, content in _fields(message):
        if number == path[0] and header[0] & 7 == _LENGTH_DELIMITED:
            pieces.append(_delimited(number, _rewrite(content, path[1:], change)))
        else:
            pieces.append(header + content)
    return b"".join(pieces)


def _tensor(message: bytes) -> Tensor:
    dims: list[int] = []
    entries: dict[str, str] = {}
    for number, header, content in _fields(message):
        if number == _DIMS and header[0] & 7 == _LENGTH_DELIMITED:
            place = 0
            while place < len(content):
                size, place = _varint(content, place)
                dims.append(size)
        elif number == _DIMS:
            dims.append(_varint(content, 0)[0])
        elif number == _EXTERNAL_DATA:
            entries.update([_pair(content)])
    if not entries:
        return Tensor(tuple(dims), None, 0)
    place_in_file = (entries.get("location", ""), int(entries.get("offset", "0")))
    return Tensor(tuple(dims), place_in_file, int(entries.get("length", "0")))


def _pair(message: bytes) -> tuple[str, str]:
    texts = {number: content.decode() for number, _, content in _fields(message)}
    return texts.get(_KEY, ""), texts.get(_VALUE, "")


def _rewrite_tensor(message: bytes, change: Change) -> bytes:
    kept, entries = [], {}
    for number, header, content in _fields(message):
        if number == _EXTERNAL_DATA:
            key, value = _pair(content)
            entries[key] = value
        else:
            kept.append(header + content)
    if not entries:
        return message
    for key, value in change(entries).items():
        pair_bytes = _delimited(_KEY, key.encode()) + _delimited(_VALUE, value.encode())
        kept.append(_delimited(_EXTERNAL_DATA, pair_bytes))
    return b"".join(kept)


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield number, header bytes (tag and length) and content of each field."""
    place = 0
    while place < len(message):
        start = place
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            body = place
            _, place = _varint(message, place)
        elif kind == _LENGTH_DELIMITED:
            length, body = _varint(message, place)
            place = body + length
        elif kind in _FIXED_BYTES:
            body = place
            place = body + _FIXED_BYTES[kind]
        else:
            raise ValueError(f"no protobuf message: wire type {kind} at byte {start}")
        if place > len(message):
            raise ValueError(f"no protobuf message: the field at byte {start} ends past the last byte")
        yield tag >> 3, message[start:body], message[body:place]


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError(f"no protobuf message: bad number at byte {place}")
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7


def _delimited(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | _LENGTH_DELIMITED) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    pieces = bytearray()
    while value > 0x7F:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)

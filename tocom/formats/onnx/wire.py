"""Reads what is needed of an ONNX file, and rewrites where its tensors lie, without the onnx package.

An ONNX file is one protobuf message. What is asked for is walked; every other byte is passed over, or through as it
is. Field numbers: :mod:`tocom.formats.onnx.fields`.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["Message", "read_fields"]

LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}


class Message:
    """The fields of one protobuf message by number.

    Raises:
        ValueError: The bytes are not a protobuf message.
    """

    def __init__(self, content: bytes) -> None:
        self._fields: dict[int, list[bytes]] = {}
        for number, _, value in read_fields(content):
            self._fields.setdefault(number, []).append(value)

    def messages(self, number: int) -> list[Message]:
        """Return the messages of a repeated field."""
        return [Message(content) for content in self._fields.get(number, ())]

    def message(self, number: int) -> Message:
        """Return the message of a field; an empty one where it is absent."""
        return Message(self._fields.get(number, [b""])[-1])

    def text(self, number: int) -> str:
        """Return a field's text, of a repeated one the last; empty where it is absent."""
        return self._fields.get(number, [b""])[-1].decode()

    def number(self, number: int, absent: int = 0) -> int:
        """Return a field's number, of a repeated one the last."""
        return (self.numbers(number) or [absent])[-1]

    def numbers(self, number: int) -> list[int]:
        """Return the numbers of a repeated field, whether they stand packed or one by one."""
        found = []
        for content in self._fields.get(number, ()):
            position = 0
            while position < len(content):
                value, position = read_varint(content, position)
                found.append(value)
        return found


def read_fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield number, header bytes (tag and length) and content of each field of a protobuf message.

    Raises:
        ValueError: The bytes are not a protobuf message.
    """
    position = 0
    while position < len(message):
        start = position
        tag, position = read_varint(message, position)
        kind = tag & 7
        if kind == 0:
            body = position
            _, position = read_varint(message, position)
        elif kind == LENGTH_DELIMITED:
            length, body = read_varint(message, position)
            position = body + length
        elif kind in _FIXED_BYTES:
            body = position
            position = body + _FIXED_BYTES[kind]
        else:
            raise ValueError(f"no protobuf message: wire type {kind} at byte {start}")
        if position > len(message):
            raise ValueError(f"no protobuf message: the field at byte {start} ends past the last byte")
        yield tag >> 3, message[start:body], message[body:position]


def read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise ValueError(f"no protobuf message: bad number at byte {position}")
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7


def delimited(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | LENGTH_DELIMITED) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    pieces = bytearray()
    while value > 0x7F:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)

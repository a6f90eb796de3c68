"""Protobuf bytes field by field, so that they can be wrong in every way. Knows no message."""

from __future__ import annotations

VARINT, FIXED64, BYTES, START_GROUP, END_GROUP, FIXED32 = range(6)


def varint(value: int) -> bytes:
    """A base-128 varint; a negative number as ten bytes of two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int, kind: int) -> bytes:
    """Number and wire type of a field."""
    return varint(number << 3 | kind)


def integer(number: int, value: int) -> bytes:
    """An integer, enum or bool field."""
    return tag(number, VARINT) + varint(value)


def block(number: int, data: bytes) -> bytes:
    """A string, bytes, message or packed field, whatever the bytes."""
    return tag(number, BYTES) + varint(len(data)) + data


def nested(number: int, depth: int) -> bytes:
    """A message within a message within …, each as field `number` of the one around it."""
    data = b""
    for _ in range(depth):
        data = block(number, data)
    return data


def groups(number: int, depth: int, *, closed: bool = True) -> bytes:
    """Groups within groups; not closed, the bytes end in the innermost."""
    return tag(number, START_GROUP) * depth + (tag(number, END_GROUP) * depth if closed else b"")

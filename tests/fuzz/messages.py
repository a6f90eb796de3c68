"""Damage to any protobuf message by its descriptor: fields lost, doubled, odd, unknown; tensors that do not fit.

What it makes is what a hostile caller, an old client (fields lost) and a future one (unknown fields, unknown enum
values) would send.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.fuzz import odd
from tests.fuzz.wire import block, groups, integer, nested
from trimtab.common.v1.common_pb2 import Tensor

_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (0, 2**31 - 1),
}
_NESTED = 3


def sent(rng: Random, sound: Message) -> bytes:
    """The bytes of a message: as it is, changed in some fields, with unknown ones, or damaged as bytes."""
    how = rng.random()
    message = type(sound)()
    message.CopyFrom(sound)
    if how > 0.1:
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            change(rng, message)
    data = message.SerializeToString()
    if rng.random() < 0.15:
        data += _unknown(rng)
    return odd.damaged(rng, data) if how > 0.9 else data


def change(rng: Random, message: Message) -> None:
    """One change to one field of the message or of any within it."""
    inside = rng.choice(list(_messages(message)))
    fields = list(inside.DESCRIPTOR.fields)
    if isinstance(inside, Tensor) and rng.random() < 0.8:
        _change_tensor(rng, inside)
    elif fields:
        _change_field(rng, inside, rng.choice(fields))


def _messages(message: Message) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for one in value if field.is_repeated else [value]:
            yield from _messages(one)


def _change_field(rng: Random, message: Any, field: FieldDescriptor) -> None:
    if rng.random() < 0.2:
        message.ClearField(field.name)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        _change_map(rng, getattr(message, field.name), field)
    elif field.is_repeated:
        _change_repeated(rng, getattr(message, field.name), field)
    elif field.message_type is not None:
        inside = getattr(message, field.name)
        inside.SetInParent()
        change_within(rng, inside)
    else:
        setattr(message, field.name, _value(rng, field))


def change_within(rng: Random, message: Any) -> None:
    """Set an odd value in some field of a message that may have been empty."""
    fields = [
        field for field in message.DESCRIPTOR.fields if not field.is_repeated and field.message_type is None
    ]
    if fields:
        field = rng.choice(fields)
        setattr(message, field.name, _value(rng, field))


def _change_map(rng: Random, entries: Any, field: FieldDescriptor) -> None:
    value = field.message_type.fields_by_name["value"]
    for _ in range(rng.choice((1, 1, 50))):
        if value.message_type is None:
            entries[odd.text(rng)] = _value(rng, value)


def _change_repeated(rng: Random, values: Any, field: FieldDescriptor) -> None:
    times = rng.choice((1, 1, 2, 40))
    if values and rng.random() < 0.5:
        at = rng.randrange(len(values))
        if rng.random() < 0.3:
            del values[at]
        else:
            values.extend([values[at]] * times)  # ids that are there already
    elif field.message_type is not None:
        for _ in range(times):
            change_within(rng, values.add())
    else:
        values.extend(_value(rng, field) for _ in range(times))


def _change_tensor(rng: Random, tensor: Tensor) -> None:
    how = rng.randrange(8)
    if how == 0:
        tensor.dtype = rng.choice((*range(9), 99))  # type: ignore[assignment] # an enum of the future
    elif how == 1:
        del tensor.shape[:]
        tensor.shape.extend(
            odd.integer(rng, -(2**63), 2**63 - 1) for _ in range(rng.choice((0, 1, 2, 5, 70)))
        )
    elif how == 2:
        tensor.shape.append(rng.choice((0, 1, 1, 2**62)))
    elif how == 3:
        tensor.data = odd.damaged(rng, tensor.data)
    elif how == 4:  # the other byte order: ids past any vocabulary
        tensor.data = b"".join(tensor.data[at : at + 4][::-1] for at in range(0, len(tensor.data), 4))
    elif how == 5:
        tensor.data = b"\0\0\xc0\x7f\0\0\x80\x7f" * (len(tensor.data) // 8) + b"\0\0\xc0\x7f" * (
            len(tensor.data) % 8 // 4
        )
    elif how == 6:
        tensor.data *= rng.choice((0, 2, 100))
        if len(tensor.shape) == 1:
            tensor.shape[0] = len(tensor.data) // 4
    else:
        tensor.data += odd.blob(rng)


def _value(rng: Random, field: FieldDescriptor) -> Any:
    if field.cpp_type in _BOUNDS:
        low, high = _BOUNDS[field.cpp_type]
        return rng.randrange(9) if rng.random() < 0.3 else odd.integer(rng, low, high)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return odd.number(rng)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    return odd.text(rng) if field.type == FieldDescriptor.TYPE_STRING else odd.blob(rng)


def _unknown(rng: Random) -> bytes:
    number = rng.choice((99, 1_000, 2**29 - 1))
    return rng.choice(
        (
            integer(number, odd.integer(rng)),
            block(number, odd.blob(rng)),
            nested(rng.randrange(1, 8), rng.choice((1, 50, 99, 101, 500))),
            groups(number, rng.choice((1, 50, 101)), closed=rng.random() < 0.5),
        )
    )

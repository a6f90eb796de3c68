"""An address of the other side's is looked at before gloo takes it for its own."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidInput
from services.models.gloo_address import check_address


def blob(
    ip: bytes = bytes([10, 1, 2, 3]), *, name: bytes = b"host", family: int = 2, count: int = 2
) -> bytes:
    """As gloo writes it: an IPv4 address of 136 bytes, identifiers of 8 bytes."""
    address = (struct.pack("<H", family) + b"\x12\x34" + ip).ljust(136, b"\0")
    identifiers = b"".join(struct.pack("<Q", at) for at in range(count))
    return struct.pack("<Q", len(name)) + name + struct.pack("<Q", len(address)) + address + identifiers


OWN = blob(name=b"another host's name")


def test_what_gloo_says_passes() -> None:
    """Names may be of any length; the address is that of the caller, or of anybody where none is known."""
    check_address(blob(), like=OWN, host="10.1.2.3")
    check_address(blob(), like=OWN, host="")
    check_address(OWN, like=OWN, host="10.1.2.3")


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (b"", "cut off"),
        (blob()[:30], "cut off"),
        (struct.pack("<Q", 2**63) + blob()[8:], "cut off"),
        (blob(name=b"x" * 256), "longer than any host's"),
        (blob(count=1), "another form"),
        (blob()[:-16], "another form"),
        (blob(family=1), "no family"),
        (blob(bytes([10, 1, 2, 4])), "does not call from"),
        (blob(bytes([127, 0, 0, 1])), "does not call from"),
    ],
)
def test_anything_else_is_refused(told: bytes, why: str) -> None:
    """Lengths that do not add up, another machine, another kind of socket."""
    with pytest.raises(InvalidInput, match=why):
        check_address(told, like=OWN, host="10.1.2.3")


@given(st.binary(max_size=400))
def test_any_bytes_end_in_one_error_or_none(told: bytes) -> None:
    """Nothing else is raised."""
    try:
        check_address(told, like=OWN, host="10.1.2.3")
    except InvalidInput:
        return
    assert told.endswith(OWN[-16:])

"""What gloo says of where it listens, looked at before it is handed to gloo, which trusts it blindly. Pure.

    8 bytes: length, host name │ 8 bytes: size, socket address and sequence │ an identifier of 8 bytes for each process

Written after what gloo makes of it (gloo/rendezvous/context.cc, transport/tcp/address.h); all numbers little-endian.
"""

from __future__ import annotations

import ipaddress
import struct

from services.common.errors import InvalidInput

_NUMBER = struct.Struct("<Q")
_LONGEST_NAME = 255
_IP_AT = {2: slice(4, 8), 10: slice(8, 24)}
"""Of sockaddr_in and sockaddr_in6, by family as Linux counts them."""


def check_address(told: bytes, *, like: bytes, host: str) -> None:
    """Raises InvalidInput unless `told` has the form of `like`, this side's own, and names `host` (empty: anybody)."""
    theirs, ours = _parts(told), _parts(like)
    if len(theirs[0]) != len(ours[0]) or theirs[1] != ours[1]:
        raise InvalidInput("the other side's address has another form than ours")
    address = theirs[0]
    family = int.from_bytes(address[:2], "little")
    if family not in _IP_AT:
        raise InvalidInput("the other side's address is of no family that is known here")
    if host and ipaddress.ip_address(address[_IP_AT[family]]) != ipaddress.ip_address(host):
        raise InvalidInput("the other side names an address that it does not call from")


def _parts(told: bytes) -> tuple[bytes, bytes]:
    """Address and identifiers."""
    name, rest = _sized(told)
    if len(name) > _LONGEST_NAME:
        raise InvalidInput("the other side's name is longer than any host's")
    return _sized(rest)


def _sized(data: bytes) -> tuple[bytes, bytes]:
    """What stands behind its own length, and the rest."""
    if len(data) < _NUMBER.size:
        raise InvalidInput("the other side's address is cut off")
    [size] = _NUMBER.unpack_from(data)
    end = _NUMBER.size + size
    if end > len(data):
        raise InvalidInput("the other side's address is cut off")
    return data[_NUMBER.size : end], data[end:]

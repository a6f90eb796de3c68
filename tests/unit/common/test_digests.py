"""Digests as people write them."""

from __future__ import annotations

import re

import pytest

from services.common.digests import DIGEST_PATTERN, same_digest

HEX = "0123456789abcdef"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (HEX, HEX, True),
        (f"blake3:{HEX}", HEX, True),
        (HEX, f"blake3:{HEX}", True),
        (f"blake3:{HEX}", f"blake3:{HEX}0", False),
        (f"blake3:{HEX}", "", False),
    ],
)
def test_a_pin_may_name_its_algorithm(one: str, other: str, *, same: bool) -> None:
    """The hex alone is compared, and all of it."""
    assert same_digest(one, other) is same


def test_what_a_service_names_can_be_pinned() -> None:
    """The hex of a status as it stands, or with an algorithm before it; never part of one."""
    assert all(re.match(DIGEST_PATTERN, good) for good in (HEX, f"blake3:{HEX * 4}"))
    assert not any(re.match(DIGEST_PATTERN, bad) for bad in ("", HEX[1:], f":{HEX}", f"{HEX}:", HEX.upper()))

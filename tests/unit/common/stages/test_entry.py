"""How an entry looks on a stream."""

from __future__ import annotations

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import Corrupted, InvalidInput
from services.common.stages.base import Entry, NewEntry
from services.common.stages.entry import (
    NAMES,
    RawEntry,
    RunKeys,
    checksum,
    decode,
    encode,
    lenient,
    read_letter,
)


def raw(fields: list[bytes], deliveries: int = 1) -> RawEntry:
    return RawEntry("5-1", fields, deliveries)


@given(
    group_id=st.text(max_size=40),
    number=st.integers(min_value=0, max_value=2**63),
    payload=st.binary(max_size=200),
    trace=st.text(max_size=60),
    deliveries=st.integers(min_value=1, max_value=9),
)
def test_what_is_encoded_decodes_to_the_same(
    group_id: str, number: int, payload: bytes, trace: str, deliveries: int
) -> None:
    """Every group id, number, payload and trace survives the stream."""
    new = NewEntry(group_id=group_id, admission_number=number, payload=payload, traceparent=trace)
    assert decode("policy", raw(encode(new), deliveries)) == Entry(
        stage="policy",
        entry_id="5-1",
        group_id=group_id,
        admission_number=number,
        payload=payload,
        deliveries=deliveries,
        traceparent=trace,
    )


def test_the_names_and_their_order_are_fixed() -> None:
    """Releases that run side by side write the same fields."""
    new = NewEntry(group_id="g", admission_number=3, payload=b"x", traceparent="t")
    assert encode(new)[::2] == NAMES
    assert NAMES == [b"group_id", b"admission", b"attempts", b"checksum", b"traceparent", b"payload"]
    assert encode(new)[1::2][:3] == [b"g", b"3", b"0"]


def test_the_checksum_is_xxhash64_over_payload_and_identity() -> None:
    """Known value; and each of payload, id and number changes it."""
    assert checksum(b"payload", "g1", 7) == xxhash.xxh64_hexdigest(b"payload\0g1\x007")
    assert (
        len({checksum(b"a", "g", 1), checksum(b"b", "g", 1), checksum(b"a", "h", 1), checksum(b"a", "g", 2)})
        == 4
    )


def test_fields_in_another_order_or_unknown_ones_decode() -> None:
    """A newer release may add fields or write them in another order."""
    flat = encode(NewEntry(group_id="g", admission_number=3, payload=b"x"))
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    shuffled = [each for pair in [(b"new", b"field"), *reversed(pairs)] for each in pair]
    assert decode("policy", raw(shuffled)) == decode("policy", raw(flat))


def test_attempts_are_stored_plus_deliveries_minus_this_one() -> None:
    """Two stored and the third delivery make four that ended badly."""
    flat = encode(NewEntry(group_id="g", admission_number=3, payload=b"x"))
    flat[5] = b"2"
    assert decode("policy", raw(flat, deliveries=3)).attempts == 4


@pytest.mark.parametrize(
    ("at", "value", "told"),
    [
        (1, b"other", "checksum"),
        (3, b"x", "invalid literal"),
        (5, b"", "invalid literal"),
        (11, b"y", "checksum"),
    ],
)
def test_damage_is_told(at: int, value: bytes, told: str) -> None:
    """A damaged field raises Corrupted, naming entry, stage and what is wrong."""
    flat = encode(NewEntry(group_id="g", admission_number=3, payload=b"x"))
    flat[at] = value
    with pytest.raises(Corrupted, match=told):
        decode("policy", raw(flat))


def test_missing_fields_are_named() -> None:
    """An entry of someone else's says what it lacks."""
    with pytest.raises(Corrupted, match="group_id, admission"):
        decode("policy", raw([b"payload", b"x"]))


def test_a_damaged_entry_can_still_be_buried_and_read() -> None:
    """What proves ownership survives even where bytes are no text."""
    found = lenient("policy", raw([b"group_id", b"\xff", b"admission", b"-"]))
    assert found.group_id.encode(errors="surrogateescape") == b"\xff"
    assert (found.admission_number, found.payload) == (0, b"")
    letter = read_letter("1-0", [b"stage", b"policy", b"reason", b"why", b"group_id", b"\xff"])
    assert (letter.stage, letter.reason, letter.group_id) == ("policy", "why", "\ufffd")


def test_the_keys_of_a_run_share_its_hash_tag() -> None:
    """Names are as settled, so that people and dashboards find them."""
    keys = RunKeys("run-1")
    assert keys.stage("reward/hh") == "trimtab:{run-1}:stage:reward/hh"
    assert keys.epoch == "trimtab:{run-1}:epoch"
    assert keys.sentinel == "trimtab:{run-1}:sentinel"
    assert keys.dead == "trimtab:{run-1}:dead"


@pytest.mark.parametrize("run_uid", ["", "a}b", "a:b", "a b"])
def test_a_run_uid_that_breaks_the_hash_tag_is_refused(run_uid: str) -> None:
    """A run cannot reach another's keys by its name."""
    with pytest.raises(InvalidInput):
        RunKeys(run_uid)


@pytest.mark.parametrize("stage", ["", "a\nb", "x" * 129])
def test_a_stage_name_that_is_no_name_is_refused(stage: str) -> None:
    """Stage names come from slips, so from outside."""
    with pytest.raises(InvalidInput):
        RunKeys("run").stage(stage)

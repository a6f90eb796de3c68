"""The short form of the fuzzer of `Score`; the long one is python -m tests.fuzz.score."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.score import GROWTH_MIB, Fuzzer, growth_mib
from tests.fuzz.service import Service, running
from tests.fuzz.wire import block, groups, integer, nested, tag, varint
from trimtab.reward.v1 import reward_pb2 as wire


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("fuzz")) as service:
        yield service


def test_the_wire_is_protobufs_own() -> None:
    """What the fuzzer writes by hand is what protobuf reads, so that most messages do get past the parser."""
    sent = block(1, b"tiny") + block(2, block(1, b"p") + block(4, integer(1, 4) + integer(2, -1)))
    read = wire.ScoreRequest.FromString(sent + groups(99, 3) + integer(98, 2**63))
    assert (read.model, read.inputs[0].prompt) == ("tiny", "p")
    assert (read.inputs[0].prompt_ids.dtype, list(read.inputs[0].prompt_ids.shape)) == (4, [-1])
    assert (varint(300), tag(1, 2), nested(2, 2)) == (b"\xac\x02", b"\x0a", b"\x12\x02\x12\x00")


def test_random_messages_do_no_harm(service: Service) -> None:
    """A few hundred messages: documented statuses alone, known scores unchanged, no error logged, memory in bounds."""
    fuzzer = Fuzzer(service)
    for number in range(4):
        fuzzer.round(number, 75)
    fuzzer.check_log()
    fuzzer.close()
    # The fuzzer is worth something only as long as much of what it sends is scored.
    assert fuzzer.tally.calls["OK"] > 60, fuzzer.tally
    assert fuzzer.tally.rows["OK"] > 60, fuzzer.tally
    assert len(fuzzer.tally.calls) >= 4, fuzzer.tally
    assert growth_mib(fuzzer.tally.memory_mib) < GROWTH_MIB


def test_large_messages_are_refused(service: Service) -> None:
    """A message past the limit, 100,000 texts and one of 5 million characters are refused with a documented status."""
    fuzzer = Fuzzer(service)
    fuzzer.check(block(1, b"words") + block(2, block(1, b"x" * (65 << 20))))
    fuzzer.check(block(1, b"words") + block(2, block(1, b"p") + block(2, b"c")) * 100_000)
    fuzzer.check(block(1, b"tiny") + block(2, block(1, b"p") + block(2, b"c" * 5_000_000)))
    fuzzer.close()
    service.check_alive()
    assert sum(fuzzer.tally.calls.values()) == 3
    assert fuzzer.tally.calls["OK"] == 0

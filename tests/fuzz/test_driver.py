"""The driver: what it calls a finding, and that a finding can be seen again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from google.protobuf.message import DecodeError

from services.common.errors import InvalidInput
from tests.fuzz import driver, groups, messages, odd, report
from tests.fuzz.page import fuzz_table
from tests.fuzz.surface import Surface, documented
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup


def surface(run: object, good: object = lambda: None, **bounds: float) -> Surface:
    return Surface(lambda rng: rng.randrange(10), run, good, **bounds)  # type: ignore[arg-type]


def seven(number: int) -> str:
    assert number != 7, f"unlucky: {number}"
    return "accepted"


def test_a_finding_is_seen_again() -> None:
    """Input n of seed s is the same whether others came before it or not."""
    account = driver.run(surface(seven), seed=5, cpu_seconds=60, most=50)
    [finding] = account.findings.values()
    assert (finding.shown, finding.times + account.inputs) == ("7", 50)
    again = driver.Account()
    driver.one(surface(seven), 5, finding.number, again)
    assert list(again.findings) == [finding.what]


def test_what_takes_too_much_is_a_finding() -> None:
    """Processor time, memory of one input, and a sound input that is answered otherwise afterwards."""

    def endless(_: int) -> str:
        while True:
            pass

    def large(_: int) -> str:
        bytearray(64 << 20)
        return "accepted"

    def worse() -> None:
        raise AssertionError("another answer than before")

    cases = {
        "TooSlow": surface(endless, cpu_seconds=0.05),
        "one input took more than 16 MiB": surface(large, peak_mib=16),
        "AssertionError": surface(lambda _: "accepted", worse),
    }
    for what, hostile in cases.items():
        account = driver.run(hostile, seed=1, cpu_seconds=60, most=1)
        assert [name for name in account.findings if name.startswith(what)], (what, account.findings)


def test_an_error_must_say_something() -> None:
    """A documented error without a word is none; an undocumented one is not caught."""

    def fail(error: Exception) -> None:
        raise error

    assert documented(lambda: fail(InvalidInput("x")), InvalidInput) == "InvalidInput"
    with pytest.raises(AssertionError, match="says nothing"):
        documented(lambda: fail(InvalidInput("")), InvalidInput)
    with pytest.raises(ValueError, match="y"):
        documented(lambda: fail(ValueError("y")), InvalidInput)


def test_messages_are_damaged_in_every_way() -> None:
    """Of a thousand: some as they were, most others, some no message at all, fields lost and unknown ones added."""
    sound = groups.group()
    whole = sound.SerializeToString(deterministic=True)  # else maps are in whatever order
    kinds = {"sound": 0, "other": 0, "none": 0, "unknown": 0, "without a prompt": 0}
    for number in range(1_000):
        data = messages.sent(Random(number), sound)
        try:
            read = RolloutGroup.FromString(data)
        except DecodeError:
            kinds["none"] += 1
            continue
        kinds["sound" if read.SerializeToString(deterministic=True) == whole else "other"] += 1
        kinds["without a prompt"] += not read.HasField("prompt")
        read.DiscardUnknownFields()  # type: ignore[attr-defined] # not in the stubs
        kinds["unknown"] += len(read.SerializeToString()) < len(data)
    assert all(count > 0 for count in kinds.values()), kinds


def test_trees_and_bytes_are_left_as_they_were() -> None:
    """What is damaged is a copy: the next input begins with the sound one again."""
    tree = {"a": [1, {"b": "text"}], "c": None}
    data = bytes(range(50))
    changed = [odd.changed(Random(number), tree) for number in range(200)]
    assert tree == {"a": [1, {"b": "text"}], "c": None}
    assert len({repr(one) for one in changed}) > 100
    assert len({odd.damaged(Random(number), data) for number in range(200)}) > 100


def test_the_pages_section_counts_what_the_report_says(tmp_path: Path) -> None:
    """A row for each surface with its inputs, minutes and findings, and every fixed one by its words."""
    account = driver.Account(
        inputs=1_234, cpu_seconds=90, outcomes=Counter({"x accepted": 1_000, "x InvalidInput": 234})
    )
    report.add("lines", 1, account, tmp_path / "report.json")
    (tmp_path / "fixed.json").write_text('{"lines": ["a depth of thousands"]}')
    told = fuzz_table(tmp_path / "report.json", tmp_path / "fixed.json")
    assert "| `lines` | 1,234 | 1.5 | 1,000 | 234 | 0 | 0 | 1 | 0 |" in told
    assert "- lines: a depth of thousands" in told
    assert fuzz_table(tmp_path / "none.json") == ""

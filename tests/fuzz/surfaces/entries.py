"""Entries of the stages: the decoder, the dead letters, and what each stage reads out of the group inside.

A damaged entry is Corrupted or InvalidInput and goes to the dead letters; never another exception, which would end a
worker's round, and never a sample whose arrays do not fit together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from google.protobuf.message import DecodeError

from services.common.errors import Corrupted, InvalidInput
from services.common.failures import error_info, failed_payload
from services.common.spec.run import RunSpec
from services.common.stages import entry as entries
from services.common.stages.base import NewEntry
from services.learner.rollouts import model_seconds, samples_of, versions_of
from services.policy.requests import draft_of
from tests.fuzz import groups, messages, odd
from tests.fuzz.surface import Surface, documented
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup

_SPECS = tuple(
    RunSpec.model_validate(
        {
            "model": {"path": "/m"},
            "data": {"prompts": "p.jsonl"},
            "reward_model": "rule:length:target=4",
            "algorithm": {"kind": kind},
        }
    )
    for kind in ("ppo", "nlpo")
)
_WORDS = (
    b"1",
    b"-1",
    b"0",
    b"00000000000000000007",
    b"9" * 5_000,
    b"1e3",
    b"1_0",
    b"\xd9\xa1",
    b" 7 ",
    b"nan",
    b"\xff",
)
Sent = tuple[str, tuple[bytes, ...]]


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """Nothing is kept between two inputs."""

    def good() -> None:
        made = entries.encode(_new(groups.group()))
        read = entries.decode("learner", entries.RawEntry("1-0", made, 1))
        for spec in _SPECS:
            assert len(samples_of(RolloutGroup.FromString(read.payload), spec)) == 2

    good()
    yield Surface(draw, run, good)


def draw(rng: Random) -> Sent:
    """The fields of an entry, or a payload alone."""
    payload = messages.sent(rng, groups.group())
    if rng.random() < 0.6:
        return "group", (payload,)
    fields = list(entries.encode(_new(groups.group())))
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(fields) or 1)
        how = rng.randrange(5)
        if not fields or how == 0:
            fields.insert(at, odd.blob(rng))
        elif how == 1:
            del fields[at]
        elif how == 2:
            fields[at] = rng.choice(_WORDS)
        elif how == 3:
            fields[at] = odd.damaged(rng, fields[at])
        else:
            fields.extend([b"a_field_of_the_future", odd.blob(rng)])
    return "entry", tuple(fields)


def run(sent: Sent) -> str:
    """Read it as the stages do."""
    kind, fields = sent
    if kind == "group":
        return f"group {documented(lambda: _read_group(fields[0]), Corrupted, InvalidInput, DecodeError, ValueError)}"
    raw = entries.RawEntry("1-0", list(fields), 1)
    letter = entries.read_letter("2-0", list(fields))
    assert isinstance(letter.admission_number, int)
    left = entries.lenient("learner", raw)
    failed = RolloutGroup.FromString(failed_payload(left, error_info(Corrupted("x"), origin="policy")))
    assert list(failed.slip) == ["learner"]
    return f"entry {documented(lambda: _read_entry(raw), Corrupted)}"


def _read_entry(raw: entries.RawEntry) -> None:
    read = entries.decode("learner", raw)
    assert read.payload == _bytes_of(groups.group()), "another payload under a checksum that is right"
    assert (read.group_id, read.admission_number) == ("1-00000007-0", 7), (
        "another identity under a right checksum"
    )
    assert 0 <= read.stored_attempts < 2**63, "attempts that no queue counts"


def _read_group(payload: bytes) -> None:
    """As the learner's intake and a policy that continues do; these are the errors that they bury a group for."""
    group = RolloutGroup.FromString(payload)
    model_seconds(group)
    versions_of(group)
    for one in group.completions:
        documented(lambda one=one: draft_of(one), Corrupted, InvalidInput)  # type: ignore[misc]
    for spec in _SPECS:
        for sample in samples_of(group, spec, vocabulary_size=263):
            size = len(sample.completion_ids)
            assert size and len(sample.behaviour_logprobs) == size == len(sample.loss_mask), (
                "arrays that do not fit"
            )
            assert all(0 <= i < 263 for i in [*sample.prompt_ids, *sample.completion_ids]), (
                "ids of no vocabulary"
            )
            assert math.isfinite(sample.score) and 0 < sample.temperature < math.inf, (
                "a number that trains nothing"
            )


def _new(group: RolloutGroup) -> NewEntry:
    return NewEntry(
        group_id=group.group_id,
        admission_number=group.admission_number,
        payload=_bytes_of(group),
        traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )


def _bytes_of(group: RolloutGroup) -> bytes:
    """The same for equal groups: the order of a map's entries is otherwise anything."""
    return group.SerializeToString(deterministic=True)

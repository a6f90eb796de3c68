"""Owns how an entry looks on a stream and how the keys of a run are called; knows no server and no group.

An entry is a flat list of names and values, always written in this order:

    group_id   admission   attempts   checksum   traceparent   payload

and `requeued` behind them where a person put it back from the dead letters.

The checksum is xxhash64 over payload, group id and admission number: what would train the wrong thing if it
were damaged. `attempts` stays outside, since a failure raises it on the server, where no xxhash is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from services.common.errors import Corrupted, InvalidInput
from services.common.stages.base import DeadLetter, Entry, NewEntry

NAMES = [b"group_id", b"admission", b"attempts", b"checksum", b"traceparent", b"payload"]
REQUEUED = b"requeued"
GROUP = "workers"
_MOST_ATTEMPTS = 2**31
_MOST_DIGITS = 20


@dataclass(frozen=True, slots=True)
class RunKeys:
    """The keys of one run. All share the hash tag {run_uid}, so a script may touch several of them."""

    run_uid: str

    def __post_init__(self) -> None:
        if not self.run_uid or set(self.run_uid) & set("{}: "):
            raise InvalidInput(f"run_uid: {self.run_uid!r} is empty or has braces, colons or spaces")

    def stage(self, name: str) -> str:
        """The stream of a stage."""
        return f"{self._prefix}:stage:{checked_stage(name)}"

    @property
    def epoch(self) -> str:
        """The counter of learner starts."""
        return f"{self._prefix}:epoch"

    @property
    def sentinel(self) -> str:
        """Set by the learner that began last, to its token: absent on a server that came back empty."""
        return f"{self._prefix}:sentinel"

    @property
    def stages(self) -> str:
        """The set of stage names that have a stream."""
        return f"{self._prefix}:stages"

    @property
    def admitted(self) -> str:
        """The nonce of the last admission, so that a repeated one adds nothing twice."""
        return f"{self._prefix}:admitted"

    @property
    def dead(self) -> str:
        """The stream of dead letters."""
        return f"{self._prefix}:dead"

    @property
    def every(self) -> str:
        """The pattern of all of them."""
        return f"{self._prefix}:*"

    @property
    def _prefix(self) -> str:
        return f"trimtab:{{{self.run_uid}}}"


@dataclass(frozen=True, slots=True)
class RawEntry:
    """An entry as it stands on the stream, unread."""

    entry_id: str
    fields: Sequence[bytes]
    deliveries: int


def checked_stage(name: str) -> str:
    """The name of a stage, which may come from a slip and so from outside. Raises InvalidInput."""
    if not name or len(name) > 128 or not name.isprintable():
        raise InvalidInput(f"stage: {name[:140]!r} is not a name of 1 to 128 printable characters")
    return name


def checksum(payload: bytes, group_id: str, admission_number: int) -> str:
    """xxhash64 over payload and identity, 16 hex digits."""
    digest = xxhash.xxh64(payload)
    digest.update(f"\0{group_id}\0{admission_number}".encode())
    return digest.hexdigest()


def encode(entry: NewEntry) -> list[bytes]:
    """The names and values of a new entry, in order. The payload is not copied."""
    return [
        NAMES[0],
        entry.group_id.encode(),
        NAMES[1],
        b"%d" % entry.admission_number,
        NAMES[2],
        b"0",
        NAMES[3],
        checksum(entry.payload, entry.group_id, entry.admission_number).encode(),
        NAMES[4],
        entry.traceparent.encode(),
        NAMES[5],
        entry.payload,
    ]


def decode(stage: str, raw: RawEntry) -> Entry:
    """The entry, its checksum verified. Raises Corrupted, saying what is wrong with it."""
    values = _values(raw.fields)
    group, admission, attempts, expected, traceparent, payload = values
    try:
        group_id, number, stored = group.decode(), int(admission), int(attempts)
        trace = traceparent.decode()
    except ValueError as error:
        raise Corrupted(f"entry {raw.entry_id} of {stage}: {error}") from error
    if checksum(payload, group_id, number).encode() != expected:
        raise Corrupted(f"entry {raw.entry_id} of {stage}: wrong checksum")
    # Outside the checksum, but what no queue has counted to is damage as well.
    if not 0 <= stored <= _MOST_ATTEMPTS:
        raise Corrupted(f"entry {raw.entry_id} of {stage}: an impossible number of attempts")
    return Entry(
        stage=stage,
        entry_id=raw.entry_id,
        group_id=group_id,
        admission_number=number,
        payload=payload,
        stored_attempts=stored,
        deliveries=raw.deliveries,
        traceparent=trace,
        requeued=REQUEUED in raw.fields[::2],
    )


def lenient(stage: str, raw: RawEntry) -> Entry:
    """What can be told of an entry that does not decode: enough to prove ownership and bury it."""
    values = dict(zip(raw.fields[::2], raw.fields[1::2], strict=False))
    admission = values.get(b"admission", b"")
    return Entry(
        stage=stage,
        entry_id=raw.entry_id,
        group_id=values.get(b"group_id", b"").decode(errors="surrogateescape"),
        admission_number=_number_in(admission),
        payload=values.get(b"payload", b""),
        deliveries=raw.deliveries,
    )


def read_letter(letter_id: str, fields: Sequence[bytes]) -> DeadLetter:
    """A dead letter as far as it can be read: it may be one because it is damaged."""
    values = dict(zip(fields[::2], fields[1::2], strict=False))
    admission = values.get(b"admission", b"")
    return DeadLetter(
        letter_id=letter_id,
        stage=values.get(b"stage", b"").decode(errors="replace"),
        group_id=values.get(b"group_id", b"").decode(errors="replace"),
        admission_number=_number_in(admission),
        reason=values.get(b"reason", b"").decode(errors="replace"),
        payload=values.get(b"payload", b""),
    )


def _number_in(written: bytes) -> int:
    """The admission number as far as it is one that protobuf can say; 0 otherwise."""
    number = int(written) if written.isdigit() and len(written) <= _MOST_DIGITS else 0
    return number if number < 2**64 else 0


def _values(fields: Sequence[bytes]) -> Sequence[bytes]:
    """The values in the order of NAMES. Fields this release does not know are left out."""
    if len(fields) == 2 * len(NAMES) and fields[::2] == NAMES:
        return fields[1::2]
    found = dict(zip(fields[::2], fields[1::2], strict=False))
    missing = [name.decode() for name in NAMES if name not in found]
    if missing:
        raise Corrupted(f"the entry has no {', '.join(missing)}")
    return [found[name] for name in NAMES]

"""The request log: a share of the scored rows as JSON lines in a file. Owns sampling, redaction and rotation.

    offer (any thread, microseconds) ──▶ bounded queue ──▶ one writer thread ──▶ requests.jsonl, .1, .2, …
                │ full: dropped, counted

Off without a path. Scoring never waits for it and never fails because of it: a full disk costs lines, counted as
dropped. The file may hold what users wrote: it is readable by its owner alone, and by default has no text at all.

Decision: whole calls are sampled, not rows: the completions of one prompt are of use only side by side.
Decision: hashes are keyed (BLAKE2b), by default with a key of this process: without one, short texts can be guessed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import structlog
from prometheus_client import Counter
from pydantic import AfterValidator, Field, SecretStr

from services.common.errors import ConfigError, InvalidInput
from services.common.rules.bounded_regex import BoundedPattern
from services.common.spec.base import Spec
from services.reward.rewards.base import ScoreOutcome, ScoreRow

WRITTEN = Counter("trimtab_reward_request_log_rows", "Rows written to the request log.")
DROPPED = Counter("trimtab_reward_request_log_dropped_rows", "Rows lost to the request log.", ["cause"])
UNREAD = Counter(
    "trimtab_reward_request_log_unread_texts", "Texts replaced as a whole, a pattern having taken too long."
)
_REDACTED = "[redacted]"
# An int of a tuple, with the pointer to it; one of a tensor.
_ID_BYTES = 36
_INT32_BYTES = 4
_log = structlog.get_logger(__name__)


def _pattern(value: str) -> str:
    try:
        BoundedPattern(value, what="request_log.patterns")
    except InvalidInput as error:
        raise ValueError(str(error)) from error
    return value


class RequestLogSpec(Spec):
    """A file of what was scored, as JSON lines. Off without a path."""

    path: Path | None = Field(None, description="The file; older ones get .1, .2, … appended.")
    share: float = Field(1.0, ge=0, le=1, description="Of the calls that are logged.")
    texts: Literal["drop", "hash", "keep"] = Field(
        "drop", description="What becomes of prompts and completions."
    )
    patterns: tuple[Annotated[str, AfterValidator(_pattern)], ...] = Field(
        (),
        description="Regular expressions; what they match is replaced, before a text is kept or hashed. A text "
        "that they have not read within a second is replaced as a whole.",
    )
    hash_key: SecretStr | None = Field(
        None, description="Key of the hashes, to compare them between replicas; empty: a new one each start."
    )
    max_characters: int = Field(100_000, ge=1, description="Of a text that is kept; the rest is cut off.")
    max_file_mib: float = Field(64, gt=0, description="A file that reaches this is rotated.")
    files: int = Field(5, ge=1, le=1000, description="Files in all, the current one included.")
    max_queued_rows: int = Field(10_000, ge=1, description="Rows that wait to be written; more are dropped.")
    max_queued_mib: float = Field(
        64, gt=0, description="Texts, columns and ids that wait meanwhile; more are dropped."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedCall:
    """One answered call. `time` in seconds since the epoch; `digest` for outcomes that name none."""

    time: float
    request_id: str
    client: str
    model: str
    digest: str
    rows: Sequence[ScoreRow]
    outcomes: Sequence[ScoreOutcome]
    held_bytes: int


class Redaction:
    """What a text becomes in the file."""

    def __init__(self, spec: RequestLogSpec) -> None:
        self._texts = spec.texts
        self._patterns = [BoundedPattern(pattern, what="request log") for pattern in spec.patterns]
        self._limit = spec.max_characters
        given = "" if spec.hash_key is None else spec.hash_key.get_secret_value()
        # BLAKE2b takes a key of at most 64 bytes.
        self._key = hashlib.sha256(given.encode()).digest() if given else secrets.token_bytes(32)

    @property
    def keeps_nothing(self) -> bool:
        """Whether texts are not needed at all."""
        return self._texts == "drop"

    def __call__(self, text: str) -> str:
        """The text without what the patterns match, or its hash: 32 hex digits."""
        try:
            for pattern in self._patterns:
                text = pattern.sub(_REDACTED, text)
        except InvalidInput:
            # Callers write the texts: one that a pattern does not finish may hold what it is there to hide.
            UNREAD.inc()
            text = _REDACTED
        if self._texts == "hash":
            data = text.encode("utf-8", "surrogatepass")
            return hashlib.blake2b(data, key=self._key, digest_size=16).hexdigest()
        return text[: self._limit]


class RequestLog:
    """Writes what it is offered, as far as it can. A spec without a path makes one that does nothing."""

    def __init__(self, spec: RequestLogSpec, *, chance: Callable[[], float] = random.random) -> None:
        self._spec = spec
        self._chance = chance
        self._redact = Redaction(spec)
        self._limit_bytes = int(spec.max_queued_mib * (1 << 20))
        self._waiting: deque[LoggedCall] = deque()
        self._rows = 0
        self._bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        if spec.path is not None:
            self._file = RotatedFile(
                spec.path, max_bytes=int(spec.max_file_mib * (1 << 20)), files=spec.files
            )
            self._file.open()
            self._thread = threading.Thread(target=self._work, name="reward-request-log", daemon=True)
            self._thread.start()

    def offer(
        self,
        model: str,
        digest: str,
        rows: Sequence[ScoreRow],
        outcomes: Sequence[ScoreOutcome],
        *,
        client: str = "",
        request_id: str = "",
    ) -> None:
        """Log these rows, or not: by chance, or because there is no room. Never blocks, never raises."""
        if self._thread is None or (self._spec.share < 1 and self._chance() >= self._spec.share):
            return
        call = LoggedCall(
            time=time.time(),
            request_id=request_id,
            client=client,
            model=model,
            digest=digest,
            rows=rows,
            outcomes=outcomes,
            held_bytes=sum(map(_held_bytes, rows)),
        )
        with self._changed:
            if self._closed or not self._has_room(call):
                DROPPED.labels("closed" if self._closed else "full").inc(len(rows))
                return
            self._waiting.append(call)
            self._count(call, 1)
            self._changed.notify()

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Write what waits, then end; what could not be written by then is counted as dropped."""
        if self._thread is None:
            return
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_seconds)
        with self._changed:
            DROPPED.labels("closed").inc(self._rows)

    def _has_room(self, call: LoggedCall) -> bool:
        return (
            self._rows + len(call.rows) <= self._spec.max_queued_rows
            and self._bytes + call.held_bytes <= self._limit_bytes
        )

    def _count(self, call: LoggedCall, sign: int) -> None:
        self._rows += sign * len(call.rows)
        self._bytes += sign * call.held_bytes

    def _work(self) -> None:
        while (call := self._next()) is not None:
            try:
                self._file.write([json.dumps(line, ensure_ascii=True) for line in self._lines(call)])
                WRITTEN.inc(len(call.rows))
            except Exception as error:  # a full disk, a folder taken away: lines are lost, scoring goes on
                DROPPED.labels("write").inc(len(call.rows))
                self._file.failed(error)
            finally:
                with self._changed:
                    self._count(call, -1)
        self._file.close()

    def _next(self) -> LoggedCall | None:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            # What is being written still counts as waiting: it holds its memory.
            return self._waiting.popleft() if self._waiting else None

    def _lines(self, call: LoggedCall) -> list[dict[str, Any]]:
        common = {
            "time": datetime.fromtimestamp(call.time, UTC).isoformat(timespec="milliseconds"),
            "request_id": call.request_id,
            "client": call.client,
            "model": call.model,
        }
        return [
            {
                **common,
                "digest": outcome.digest or call.digest,
                "row": index,
                **_lengths(row),
                **_result(outcome),
                **self._texts(row),
            }
            for index, (row, outcome) in enumerate(zip(call.rows, call.outcomes, strict=True))
        ]

    def _texts(self, row: ScoreRow) -> dict[str, Any]:
        """Columns (a data set's other fields, such as the right answer) are never written."""
        if self._redact.keeps_nothing or row.ids is not None:
            return {}
        return {
            "messages": [{"role": role, "content": self._redact(content)} for role, content in row.messages],
            "completion": self._redact(row.completion),
        }


class RotatedFile:
    """A file that is renamed to .1 when it is full, .1 to .2, and so on; the oldest is deleted."""

    def __init__(self, path: Path, *, max_bytes: int, files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._files = files
        self._file: IO[bytes] | None = None
        self._size = 0
        self._broken = False

    def open(self) -> None:
        """Begin to append. ConfigError, naming the path, where that cannot be."""
        try:
            self._opened()
        except OSError as error:
            raise ConfigError(f"request_log.path {self._path}: {error.strerror}") from error

    def write(self, lines: Sequence[str]) -> None:
        """Append lines, in one write each file, so that a crash cuts at most the last."""
        data = "".join(f"{line}\n" for line in lines).encode("ascii")
        if self._broken:
            # Half a line may stand at the end: the next one must not be glued to it.
            data = b"\n" + data
        if self._size and self._size + len(data) > self._max_bytes:
            self._rotate()
        file = self._file if self._file is not None else self._opened()
        file.write(data)
        file.flush()
        self._size += len(data)
        self._broken = False

    def failed(self, error: Exception) -> None:
        """Tell once; try to open the file anew with the next line."""
        if not self._broken:
            self._broken = True
            _log.warning("request log cannot be written", path=str(self._path), error=str(error))
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        file, self._file = self._file, None
        if file is not None:
            # Every write was flushed: what fails here has failed, and been told, before.
            with suppress(OSError):
                file.close()

    def _opened(self) -> IO[bytes]:
        # Its owner alone may read what users wrote.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "ab")
        self._size = os.fstat(descriptor).st_size
        return self._file

    def _rotate(self) -> None:
        self.close()
        for number in range(self._files - 1, 0, -1):
            older = self._numbered(number)
            newer = self._numbered(number - 1)
            if newer.exists():
                newer.replace(older)
        if self._files == 1:
            self._path.unlink(missing_ok=True)
        self._opened()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


def _held_bytes(row: ScoreRow) -> int:
    """About what a row holds while it waits, columns and ids too: they wait with it, though they are not written."""
    texts = len(row.completion) + sum(len(content) for _, content in row.messages)
    columns = sum(len(name) + len(value) for name, value in row.columns.items())
    ids = 0 if row.ids is None else len(row.ids.prompt) + len(row.ids.completion)
    completion_ids = 0 if row.completion_ids is None else len(row.completion_ids)
    return texts + columns + _ID_BYTES * ids + _INT32_BYTES * completion_ids


def _lengths(row: ScoreRow) -> dict[str, int]:
    if row.ids is not None:
        return {"prompt_tokens": len(row.ids.prompt), "completion_tokens": len(row.ids.completion)}
    return {
        "prompt_characters": sum(len(content) for _, content in row.messages),
        "completion_characters": len(row.completion),
    }


def _result(outcome: ScoreOutcome) -> dict[str, Any]:
    """value, or error with its kind alone: an error's text may quote what was to be scored."""
    result: dict[str, Any] = {"truncated_tokens": outcome.truncated_tokens}
    if outcome.error is not None:
        result["error"] = outcome.error.status
    else:
        result["value"] = outcome.value
    if outcome.components:
        result["components"] = dict(outcome.components)
    if outcome.steps:
        result["steps"] = list(outcome.steps)
    return result

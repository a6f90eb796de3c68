"""A user's Python function as a RewardSource. Owns what its misbehaviour costs; its code runs in other processes.

| the function                            | costs                                                            |
|-----------------------------------------|------------------------------------------------------------------|
| raises                                  | the row that it raises for: the batch is tried again row by row  |
| returns None, a string, NaN for a row   | that row                                                         |
| returns the wrong length or type        | the rows of the batch                                            |
| sleeps or loops beyond the limit        | the rows of the batch, and its process, which is replaced        |
| exits, crashes                          | the rows of the batch, and its process, which is replaced        |

Decision: the second try of a batch, row by row, has what is left of the batch's own time limit: a batch costs at
most `timeout_seconds`, however many rows it has. What takes too long or crashes is not tried again: each of its
rows could cost as much once more. `batch_rows = 1` separates rows fully.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from services.common.errors import Expired, InvalidInput, Mismatch, ServiceError, TrimtabError, Unavailable
from services.reward.config import FunctionSpec
from services.reward.rewards.base import (
    Caller,
    NotScored,
    ScoreOutcome,
    ScoreRow,
    SourceDescription,
    outcome_of,
)
from services.reward.rewards.chunks import ChunkedPool
from services.reward.rewards.function_process import Died, FunctionProcess
from services.reward.rewards.trl_call import ROW_COLUMN, row_problem

START_SECONDS = 120.0
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Slot:
    """A place for one process; empty where one could not be started."""

    process: FunctionProcess | None = None


class _Raised(ServiceError):
    """The function raised; another call of the same process may go well."""


class FunctionReward:
    """Scores by `spec.name`, an entry point of group trimtab.rewards or package.module:function, written as for TRL:

        def reward(prompts, completions, **columns) -> list[float]

    prompts, completions: texts. messages, for who asks for it: the conversations before the completions, lists of
    {"role", "content"}. Every other keyword is a data-set column, None where a row lacks it. May be async. Rows of
    one call of the service are handed over together, at most `batch_rows`; a score must depend on its row alone.
    convention = "trl": see trl_call.py.
    """

    kind: Literal["function"] = "function"

    def __init__(self, spec: FunctionSpec, *, name: str, max_queued_rows: int = 16384) -> None:
        self._spec = spec
        self._name = name
        self._slots = [_Slot() for _ in range(spec.workers)]
        self._idle: queue.LifoQueue[_Slot] = queue.LifoQueue()
        try:
            self._identity = self._start_all()
        except TrimtabError as error:
            self._kill_all()
            raise InvalidInput(
                f"reward function {spec.name} cannot be imported: {error}", {"function.name": "a function"}
            ) from None
        except BaseException:
            self._kill_all()
            raise
        canonical = json.dumps(["function", 1, self._identity], sort_keys=True)
        self._digest = hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
        self._pool = ChunkedPool(
            name, threads=spec.workers, max_rows=max_queued_rows, chunk_rows=spec.batch_rows
        )

    @property
    def digest(self) -> str:
        """BLAKE2b-128 over the function's name, the SHA-256 of its module's file, its distribution and version.

        What its module imports from elsewhere is not in it.
        """
        return self._digest

    def describe(self) -> SourceDescription:
        """A function reads text and cuts nothing."""
        return SourceDescription(input_kind="text")

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        """See RewardSource.submit."""
        return self._pool.submit(rows, caller, self._score)

    def close(self) -> None:
        """See RewardSource.close."""
        self._pool.close()
        self._kill_all()

    # -------------------------------------------------------------- processes

    def _start_all(self) -> dict[str, str]:
        for slot in self._slots:
            slot.process = FunctionProcess(self._spec.name)
            self._idle.put(slot)
        identities = [slot.process.identity(seconds=START_SECONDS) for slot in self._slots if slot.process]
        if any(identity != identities[0] for identity in identities):
            raise Mismatch("its source changed while it was being imported")
        return identities[0]

    def _kill_all(self) -> None:
        for slot in self._slots:
            if slot.process is not None:
                slot.process.kill()
                slot.process = None

    def _ready(self, slot: _Slot) -> FunctionProcess:
        """The slot's process with the function imported; another one where it has died meanwhile."""
        if slot.process is not None and not slot.process.alive:
            self._replace(slot, "its process had ended between two calls")
        if slot.process is None:
            slot.process = FunctionProcess(self._spec.name)
        try:
            identity = slot.process.identity(seconds=START_SECONDS)
        except TrimtabError as error:
            slot.process.kill()
            slot.process = None
            raise Unavailable(
                f"reward function {self._spec.name} cannot be imported again: {error}"
            ) from None
        if identity != self._identity:
            slot.process.kill()
            slot.process = None
            raise Mismatch(
                f"the code of reward function {self._spec.name} has changed since it was loaded; "
                "swap the model to take it as it is now"
            )
        return slot.process

    def _replace(self, slot: _Slot, reason: str) -> None:
        """Kill; the next process imports the function while the answer travels."""
        _log.warning("reward function's process replaced", model=self._name, reason=reason)
        if slot.process is not None:
            slot.process.kill()
            slot.process = None
        with contextlib.suppress(OSError):  # no process to be had now: the next call tries again
            slot.process = FunctionProcess(self._spec.name)

    # -------------------------------------------------------------- rows

    def _score(self, rows: Sequence[ScoreRow]) -> list[ScoreOutcome]:
        """One chunk, on one of the pool's threads, of which there are as many as slots."""
        outcomes = [self._unreadable(row) for row in rows]
        readable = [row for row, outcome in zip(rows, outcomes, strict=True) if outcome is None]
        slot = self._idle.get()
        try:
            scored = iter(self._batch(slot, readable) if readable else ())
        finally:
            self._idle.put(slot)
        return [next(scored) if outcome is None else outcome for outcome in outcomes]

    def _unreadable(self, row: ScoreRow) -> ScoreOutcome | None:
        """The error of a row that the function is not called for; None: it is."""
        if row.ids is not None:
            return ScoreOutcome(error=Mismatch("the input has token ids only"))
        problem = row_problem(row.columns) if self._spec.convention == "trl" else ""
        if not problem:
            return None
        field = f"columns[{ROW_COLUMN}]"
        return ScoreOutcome(error=InvalidInput(f"{field}: {problem}", {field: "a JSON object with a prompt"}))

    def _batch(self, slot: _Slot, rows: Sequence[ScoreRow]) -> list[ScoreOutcome]:
        try:
            process = self._ready(slot)
        except (TrimtabError, OSError) as error:
            return _all(rows, error if isinstance(error, TrimtabError) else Unavailable(str(error)))
        ends = time.monotonic() + self._spec.timeout_seconds
        try:
            return self._call(slot, process, rows, ends)
        except _Raised as error:
            _log.warning("reward function raised", model=self._name, rows=len(rows), error=str(error))
            return _all(rows, error) if len(rows) == 1 else self._one_by_one(slot, process, rows, ends, error)
        except TrimtabError as error:
            return _all(rows, error)

    def _one_by_one(
        self,
        slot: _Slot,
        process: FunctionProcess,
        rows: Sequence[ScoreRow],
        ends: float,
        whole: _Raised,
    ) -> list[ScoreOutcome]:
        """Each row alone, as long as the batch's time lasts and its process lives."""
        untried = ServiceError(f"{whole}; there was no time to try this row alone")
        outcomes: list[ScoreOutcome] = []
        for row in rows:
            if slot.process is not process or time.monotonic() >= ends:
                outcomes.append(ScoreOutcome(error=untried))
                continue
            try:
                outcomes += self._call(slot, process, [row], ends)
            except TrimtabError as error:
                outcomes.append(ScoreOutcome(error=error))
        return outcomes

    def _call(
        self, slot: _Slot, process: FunctionProcess, rows: Sequence[ScoreRow], ends: float
    ) -> list[ScoreOutcome]:
        """Outcomes of the rows; what concerns all of them is raised."""
        name = self._spec.name
        try:
            reply = process.call(
                {"rows": [_encoded(row) for row in rows], "convention": self._spec.convention}, ends=ends
            )
        except Expired:
            error: TrimtabError = Expired(
                f"reward function {name} took longer than {self._spec.timeout_seconds:g} s"
            )
        except Died as died:
            error = ServiceError(f"reward function {name} failed: {died}")
        else:
            return self._outcomes(reply, len(rows))
        self._replace(slot, str(error))
        raise error

    def _outcomes(self, reply: dict[str, Any], count: int) -> list[ScoreOutcome]:
        name = self._spec.name
        if "missing" in reply:
            names = reply["missing"]
            raise InvalidInput(
                f"reward function {name} needs the column {', '.join(names)}",
                {f"columns[{each}]": "a value" for each in names},
            )
        if "raised" in reply:
            raise _Raised(f"reward function {name} raised {reply['raised']}")
        if "values" not in reply:
            raise ServiceError(f"reward function {name} {reply.get('wrong')}")
        values = reply["values"]
        if not isinstance(values, list) or len(values) != count:
            raise ServiceError(f"reward function {name} answered what cannot be read")
        return [
            ScoreOutcome(error=ServiceError(f"reward function {name} {value}"))
            if isinstance(value, str)
            else ScoreOutcome(error=NotScored(f"reward function {name} has no score for this row"))
            if value is None
            else outcome_of(float(value))
            for value in values
        ]


def _encoded(row: ScoreRow) -> dict[str, Any]:
    return {
        "prompt": row.prompt,
        "completion": row.completion,
        "messages": row.messages,
        "columns": dict(row.columns),
        "ids": None if row.completion_ids is None else [int(token) for token in row.completion_ids],
    }


def _all(rows: Sequence[ScoreRow], error: TrimtabError) -> list[ScoreOutcome]:
    return [ScoreOutcome(error=error)] * len(rows)

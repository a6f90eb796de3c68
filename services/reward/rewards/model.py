"""A reward model as a RewardSource: tokenising aside, a batch in front, and what happens to rows that fail.

submit ──▶ room kept ──▶ tokenise (threads, slices in turn) ──▶ Batcher ──▶ forward pass (the device's one thread)
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from pathlib import Path

import structlog

from services.common.errors import Corrupted, InvalidInput, Mismatch, NotFound, ServiceError, TrimtabError
from services.models.classifiers import Readout, load_classifier
from services.models.packing import micro_batches
from services.models.reward_model import SETTINGS_FILE, load_reward_model
from services.models.scorer import Encoded, Reading, Scorer, ScoreText
from services.reward.batching import Batcher, BatchFacts, Limits, Room
from services.reward.futures import chained, flattened
from services.reward.observing import SILENT, Observer
from services.reward.rewards.base import (
    Caller,
    ScoreOutcome,
    ScoreRow,
    SourceClosed,
    SourceDescription,
    SourceKind,
    outcome_of,
)
from services.reward.rewards.turns import Turns, in_slices

_log = structlog.get_logger(__name__)
_Read = Reading | TrimtabError


class ModelReward:
    """Scores by a model; the model's own gain and bias are applied, nothing else."""

    def __init__(
        self,
        scorer: Scorer,
        folder: Path,
        *,
        limits: Limits,
        tokenisers: Turns,
        computes: Executor,
        observer: Observer = SILENT,
    ) -> None:
        self.folder = folder
        self._scorer = scorer
        self._about = scorer.about()
        self._tokenisers = tokenisers
        self._computes = computes
        self._observer = observer
        self._padded_tokens = limits.batch_tokens
        self._closing = threading.Lock()
        self._closed = False
        self._encoding: set[Future[Future[list[ScoreOutcome]]]] = set()
        self._batcher: Batcher[Encoded, _Read] = Batcher(
            scorer.name,
            lambda rows: self._computes.submit(self._read, rows).result(),
            size=lambda row: len(row.ids),
            key=lambda row: (row.ids, row.start, row.steps),
            limits=limits,
            observe=self._ran,
        )

    @property
    def kind(self) -> SourceKind:
        """model, or process: a process reward model."""
        return self._about.kind

    @property
    def digest(self) -> str:
        """BLAKE3 over weights, head, gain and bias, hex."""
        return self._about.facts.model_digest

    @property
    def queued(self) -> tuple[int, int]:
        """Rows and tokens that wait."""
        return self._batcher.queued

    def describe(self) -> SourceDescription:
        """Reads text; a model with a chat template reads messages. The oldest tokens are cut."""
        about = self._about
        return SourceDescription(
            facts=about.facts,
            input_kind="messages" if about.chat else "text",
            truncates="left",
            max_tokens=about.max_tokens,
            gain=about.gain,
            bias=about.bias,
        )

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        """See RewardSource.submit."""
        # Before the work of tokenising: a flood must be refused for the price of a comparison.
        room = self._batcher.keep_room(len(rows))
        with self._closing:
            if self._closed:
                self._batcher.give_up(room)
                raise SourceClosed(f"reward model {self._scorer.name} has been taken away")
            encoding = in_slices(
                self._tokenisers,
                rows,
                caller,
                self._encode,
                lambda encoded, began: self._enqueue(encoded, began, caller, room),
            )
            self._encoding.add(encoding)
        encoding.add_done_callback(self._encoding.discard)
        encoding.add_done_callback(lambda _: self._batcher.give_up(room))
        return flattened(encoding)

    def close(self) -> None:
        """See RewardSource.close."""
        with self._closing:
            self._closed = True
        # What was submitted before is to be scored, so it must have got as far as the batcher.
        wait(list(self._encoding))
        self._batcher.close()

    def warm_up(self) -> None:
        """One pass before anybody waits: kernels are chosen and memory is taken on the first one.

        Raises InvalidInput where the model cannot do it, so that it takes nobody's place.
        """
        try:
            row = self._scorer.encode(ScoreText((("user", "Hello"),), "Hello!"))
        except Exception:  # a template may refuse it, and take what will come
            return
        try:
            self._computes.submit(self._scorer.read, [row]).result()
        except Exception as error:  # whatever a model raises that does not fit its own head
            raise InvalidInput(f"reward model {self.folder} cannot score: {error}") from error

    def _encode(self, row: ScoreRow) -> Encoded | TrimtabError:
        try:
            if row.ids is None:
                encoded = self._scorer.encode(_text(row))
            elif row.ids.fingerprint != self._about.facts.tokenizer_fingerprint:
                return Mismatch("token ids need the fingerprint of this model's tokenizer")
            else:
                encoded = self._scorer.encode_ids(row.ids.prompt, row.ids.completion)
            return encoded if encoded.ids else InvalidInput("the input has no tokens")
        except TrimtabError as error:
            return error
        except Exception:  # whatever a tokenizer raises on a strange text
            _log.exception("a row could not be tokenised", model=self._scorer.name)
            return ServiceError("the tokenizer failed on this row")

    def _enqueue(
        self, encoded: Sequence[Encoded | TrimtabError], began: float, caller: Caller, room: Room
    ) -> Future[list[ScoreOutcome]]:
        ended = time.monotonic()
        caller.trace.phase("tokenise", began, ended)
        self._observer.tokenised(self._scorer.name, ended - began)
        good = [row for row in encoded if isinstance(row, Encoded)]

        def merge(read: list[_Read]) -> list[ScoreOutcome]:
            readings = iter(read)
            return [
                _outcome(next(readings), row.cut) if isinstance(row, Encoded) else ScoreOutcome(error=row)
                for row in encoded
            ]

        return chained(self._batcher.submit(good, caller, room), merge)

    def _read(self, rows: Sequence[Encoded]) -> list[_Read]:
        """In parts where there is padding: one long row must not make a thousand short ones as long."""
        if self._scorer.packed:
            return self._read_part(rows)
        read: dict[int, _Read] = {}
        for part in micro_batches([len(row.ids) for row in rows], self._padded_tokens):
            read |= zip(part, self._read_part([rows[index] for index in part]), strict=True)
        return [read[index] for index in range(len(rows))]

    def _read_part(self, rows: Sequence[Encoded]) -> list[_Read]:
        """A pass that fails is made again row by row, so that one strange row fails alone."""
        try:
            readings = self._scorer.read(rows)
            self._tell_padding(rows)
            return list(readings)
        except Exception:  # whatever the model raises on a strange row
            if len(rows) == 1:
                _log.exception("a row could not be scored", model=self._scorer.name)
                return [ServiceError("the reward model failed on this row")]
            return [reading for row in rows for reading in self._read_part([row])]

    def _ran(self, facts: BatchFacts) -> None:
        self._observer.batch(self._scorer.name, facts)

    def _tell_padding(self, rows: Sequence[Encoded]) -> None:
        if not self._scorer.packed:
            lengths = [len(row.ids) for row in rows]
            self._observer.padded(self._scorer.name, len(rows) * max(lengths) - sum(lengths))


def open_model(
    path: str,
    *,
    dtype: str,
    device: str,
    threads: int,
    name: str,
    readout: Readout,
) -> Scorer:
    """A reward model from a local folder of safetensors; anything else could run code and is refused."""
    try:
        folder = Path(path).expanduser()
        there = folder.is_dir()
    except (OSError, RuntimeError) as error:
        # A name too long, a folder that may not be entered, the home of nobody.
        raise NotFound(f"reward model {path[:200]}: {error}") from error
    if not there:
        raise NotFound(f"reward model {path}: no such folder")
    if not list(folder.glob("*.safetensors")):
        raise InvalidInput(
            f"reward model {path}: only safetensors are accepted, and the folder has none",
            {"path": "a folder with safetensors"},
        )
    if (folder / SETTINGS_FILE).is_file():
        model = load_reward_model(path, dtype=dtype, threads=threads, device=device, name=name)
        model.pack()
        return model
    return load_classifier(folder, dtype=dtype, threads=threads, device=device, name=name, readout=readout)


def _text(row: ScoreRow) -> ScoreText:
    return ScoreText(row.messages, row.completion, row.rendered, row.special_tokens)


def _outcome(read: _Read, cut: int) -> ScoreOutcome:
    if isinstance(read, TrimtabError):
        return ScoreOutcome(error=read)
    outcome = outcome_of(read.value, truncated_tokens=cut)
    if outcome.value is None or not read.steps:
        return outcome
    if not all(map(math.isfinite, read.steps)):
        return ScoreOutcome(error=Corrupted("the score of a step is not a finite number"))
    return ScoreOutcome(value=outcome.value, truncated_tokens=cut, steps=read.steps)

"""What a reading of a model becomes, and in which passes it is made."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.common.errors import InvalidInput, Overloaded
from services.models.facts import ModelFacts
from services.models.scorer import Encoded, Reading, ScorerAbout, ScoreText
from services.reward.batching import Limits
from services.reward.rewards.base import Caller, ScoreRow
from services.reward.rewards.model import ModelReward, _outcome
from services.reward.rewards.turns import Turns

FACTS = ModelFacts(
    name="m",
    architecture="encoder",
    tokenizer_fingerprint="t",
    chat_template_digest="",
    model_digest="d",
    context_length=64,
    vocabulary_size=8,
    dtype="float32",
)


@dataclass
class Padded:
    """A scorer that pads: a row has as many tokens as its answer letters, which is its score; notes its passes."""

    name: str = "m"
    packed: bool = False
    broken: bool = False
    passes: list[list[int]] = field(default_factory=list)

    def about(self) -> ScorerAbout:
        return ScorerAbout(kind="model", facts=FACTS, chat=False, max_tokens=64)

    def encode(self, row: ScoreText) -> Encoded:
        return Encoded(ids=(1,) * len(row.completion), start=0)

    def encode_ids(self, prompt: Sequence[int], completion: Sequence[int]) -> Encoded:
        raise NotImplementedError

    def read(self, rows: Sequence[Encoded]) -> list[Reading]:
        if self.broken:
            raise IndexError("index 1 is out of bounds")
        self.passes.append([len(row.ids) for row in rows])
        return [Reading(value=float(len(row.ids))) for row in rows]


@pytest.fixture
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def served(scorer: Padded, threads: Executor) -> ModelReward:
    limits = Limits(batch_tokens=64, queued_rows=1000, queued_tokens=10_000)
    return ModelReward(scorer, Path("m"), limits=limits, tokenisers=Turns(threads), computes=threads)


def test_one_long_row_does_not_make_short_ones_as_long(threads: Executor) -> None:
    """No pass pads to more than a batch's tokens; scores are in the order of the rows."""
    scorer = Padded()
    model = served(scorer, threads)
    lengths = [2, 40, 3, 4, 5, 6]
    rows = [ScoreRow(messages=(("user", "q"),), completion="x" * length) for length in lengths]
    found = model.submit(rows, Caller()).result(10)
    model.close()
    assert [outcome.value for outcome in found] == lengths
    assert scorer.passes == [[40], [6, 5, 4, 3, 2]]


def test_a_model_that_cannot_do_a_pass_is_not_ready(threads: Executor) -> None:
    """It is refused at its warm-up, in words, before it takes the place of one that works."""
    model = served(Padded(broken=True), threads)
    with pytest.raises(InvalidInput, match="reward model m cannot score: index 1 is out of bounds"):
        model.warm_up()
    model.close()


def test_rows_that_are_being_tokenised_take_room(threads: Executor) -> None:
    """A flood is refused while the first of it are tokenised, not only once they are in line; who goes makes room."""
    going = threading.Event()

    class Slow(Padded):
        def encode(self, row: ScoreText) -> Encoded:
            assert going.wait(10)
            return super().encode(row)

    model = served(Slow(), threads)
    rows = [ScoreRow(messages=(("user", "q"),), completion="xx")] * 600
    gone, kept = model.submit(rows, Caller(client="a")), model.submit(rows[:400], Caller(client="b"))
    assert model.queued == (1000, 0)
    with pytest.raises(Overloaded, match="1000 rows"):
        model.submit(rows[:1], Caller())
    gone.cancel()
    assert model.queued == (400, 0)
    last = model.submit(rows, Caller())
    going.set()
    assert [len(each.result(10)) for each in (kept, last)] == [400, 600]
    model.close()
    assert model.queued == (0, 0)


@pytest.mark.parametrize("steps", [(0.5, math.nan), (math.nan, 0.5), (math.inf, 0.5)])
def test_a_step_that_is_no_number_is_no_score(steps: tuple[float, ...]) -> None:
    """The smallest of a step and NaN may be a number: the row is an error all the same."""
    outcome = _outcome(Reading(value=min(steps), steps=steps), cut=0)
    assert outcome.value is None and outcome.error is not None
    assert outcome.error.status == "DATA_LOSS"


def test_steps_go_with_the_value() -> None:
    """A sound reading is the row's value, its steps, and what was cut."""
    outcome = _outcome(Reading(value=0.25, steps=(0.25, 0.5)), cut=3)
    assert (outcome.value, outcome.steps, outcome.truncated_tokens) == (0.25, (0.25, 0.5), 3)

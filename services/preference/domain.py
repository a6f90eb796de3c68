"""Owns the words of the preference domain: item, task, comparison. Knows no wire and no database."""

from __future__ import annotations

import enum
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from services.common.validation import Violations

MAX_CANDIDATES = 32  # 496 tasks
MAX_ID_CHARACTERS = 200
MAX_TASKS = 1000
MAX_BATCH = 1000
MAX_ANNOTATORS = 100
MAX_SECONDS = 86_400.0


class Choice(enum.StrEnum):
    """What an annotator said about a pair, in the order shown."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    SKIP = "skip"
    FLAG = "flag"


class Subject(enum.StrEnum):
    """What is rated."""

    CANDIDATE = "candidate"
    SOURCE = "source"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a prompt."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """The weights that made a candidate."""

    epoch: int
    step: int
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One answer. `candidate_id` is unique within its item; `source` is what made it ("policy@0")."""

    candidate_id: str
    text: str
    source: str = ""
    version: Version | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A prompt and two or more candidates. `prompt_id` is for splitting by prompt, never by row.

    `annotators`: how many of them answer each of its tasks; 0: as the service assigns.
    `gold_order`: all candidate ids, best first, where the answer is known; such an item checks annotators.
    """

    item_id: str
    prompt: tuple[Message, ...]
    candidates: tuple[Candidate, ...]
    campaign: str = ""
    prompt_id: str = ""
    annotators: int = 0
    gold_order: tuple[str, ...] = ()

    def candidate(self, candidate_id: str) -> Candidate:
        """The candidate of that id. KeyError if there is none."""
        for candidate in self.candidates:
            if candidate.candidate_id == candidate_id:
                return candidate
        raise KeyError(candidate_id)

    def differs(self, other: Item) -> str:
        """What two items of one id do not share; empty where it is the same question. Sources and order say nothing."""
        texts, others = (
            {candidate.candidate_id: candidate.text for candidate in one.candidates} for one in (self, other)
        )
        if self.prompt != other.prompt:
            return "another prompt"
        if texts != others:
            return "other answers"
        return "" if self.campaign == other.campaign else "another campaign"

    def alike(self, one: str, other: str) -> bool:
        """Whether two candidates have the same text: a model may write it twice."""
        return self.candidate(one).text == self.candidate(other).text


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Two candidates of one item in the order to show them; `lease_until` in Unix seconds."""

    task_id: str
    item: Item
    first_candidate_id: str
    second_candidate_id: str
    lease_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One annotator's answer to one task. `recorded_at` (Unix seconds), `item_id` and `gold` are set by the store.

    `ranking_id` is shared by the pairs of one ranking, empty where a pair was shown. `seconds`: from seeing the
    task to answering. `revision`: of the same annotator's answers to a task the highest one stands. `margin`: how much
    better the preferred one is, in the data's own unit.
    """

    task_id: str
    annotator: str
    first_candidate_id: str
    second_candidate_id: str
    choice: Choice
    item_id: str = ""
    confidence: float | None = None
    comment: str = ""
    recorded_at: float = 0.0
    ranking_id: str = ""
    seconds: float | None = None
    revision: int = 0
    gold: bool = False
    margin: float | None = None

    @property
    def preferred(self) -> str:
        """What was said, whichever side it was shown on: a candidate's id, or the choice if it names none."""
        if self.choice is Choice.FIRST:
            return self.first_candidate_id
        return self.second_candidate_id if self.choice is Choice.SECOND else f"({self.choice})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counts of one campaign or of all. `comparisons` counts ties and skipped (skip, flag) ones too."""

    items: int = 0
    tasks_open: int = 0
    comparisons: int = 0
    ties: int = 0
    skipped: int = 0
    comparisons_by_annotator: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTask:
    """A task as it is made at upload; `order` is its place in the order of presentation."""

    task_id: str
    first_candidate_id: str
    second_candidate_id: str
    order: int


def content_id(*parts: str) -> str:
    """BLAKE2b-96 of the parts, hex: the same parts give the same id everywhere."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def make_task_id(item_id: str, one: str, other: str) -> str:
    """The id of the task that compares two candidates of an item, whichever way round."""
    return content_id(item_id, *sorted((one, other)))


def rated_name(item_id: str, candidate_id: str) -> str:
    """What a candidate is rated as: `item_id/candidate_id`, where a / and a % of the item's are %2F and %25.

    No two candidates share a name, whatever their ids hold: the first / is the one between them.
    """
    return f"{item_id.replace('%', '%25').replace('/', '%2F')}/{candidate_id}"


def plan_tasks(item: Item, seed: int) -> Iterator[PlannedTask]:
    """All K(K-1)/2 pairs. Sides and order come from a hash of (seed, task), not from the upload."""
    for one, other in itertools.combinations([candidate.candidate_id for candidate in item.candidates], 2):
        task_id = make_task_id(item.item_id, one, other)
        drawn = int.from_bytes(hashlib.blake2b(f"{seed}:{task_id}".encode(), digest_size=8).digest(), "big")
        low, high = sorted((one, other))
        first, second = (low, high) if drawn & 1 else (high, low)
        # 62 bits without the one that chose the sides: every SQL database's integers hold it.
        yield PlannedTask(
            task_id=task_id, first_candidate_id=first, second_candidate_id=second, order=drawn >> 2
        )


def prompt_text(prompt: Sequence[Message]) -> str:
    """The prompt as rules read it: one message's content, or all messages with their roles."""
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt)


def check_items(items: Sequence[Item]) -> None:
    """Raises InvalidInput naming every field that cannot be accepted."""
    found = Violations()
    found.check(len(items) <= MAX_BATCH, "items", f"expected at most {MAX_BATCH}, got {len(items)}")
    for number, item in enumerate(items[:MAX_BATCH]):
        _check_item(found, item, f"items[{number}]")
    found.raise_any()


def _check_item(found: Violations, item: Item, where: str) -> None:
    _check_id(found, item.item_id, f"{where}.item_id")
    for name, value in (("campaign", item.campaign), ("prompt_id", item.prompt_id)):
        _check_id(found, value, f"{where}.{name}", empty=True)
    found.not_empty(item.prompt, f"{where}.prompt", "at least one message")
    for number, message in enumerate(item.prompt):
        found.not_empty(message.role, f"{where}.prompt[{number}].role", "a role")
        _check_text(found, message.content, f"{where}.prompt[{number}].content")
    count = len(item.candidates)
    expected = f"expected 2 to {MAX_CANDIDATES} candidates, got {count}"
    found.check(2 <= count <= MAX_CANDIDATES, f"{where}.candidates", expected)
    ids = {candidate.candidate_id for candidate in item.candidates}
    found.check(len(ids) == count, f"{where}.candidates", "expected candidate_ids that differ")
    for number, candidate in enumerate(item.candidates):
        _check_candidate(found, candidate, f"{where}.candidates[{number}]")
    found.check(
        0 <= item.annotators <= MAX_ANNOTATORS,
        f"{where}.annotators",
        f"expected 0 to {MAX_ANNOTATORS}, got {item.annotators}",
    )
    whole = not item.gold_order or sorted(item.gold_order) == sorted(ids)
    found.check(whole, f"{where}.gold_order", "expected every candidate_id once, best first, or none")


def _check_candidate(found: Violations, candidate: Candidate, where: str) -> None:
    _check_id(found, candidate.candidate_id, f"{where}.candidate_id")
    _check_id(found, candidate.source, f"{where}.source", empty=True)
    _check_text(found, candidate.text, f"{where}.text")
    if candidate.version is not None:
        _check_id(found, candidate.version.digest, f"{where}.version.digest", empty=True)
        for name, value in (("epoch", candidate.version.epoch), ("step", candidate.version.step)):
            found.check(0 <= value < 2**63, f"{where}.version.{name}", f"expected 0 to 2^63 - 1, got {value}")


def check_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Raises InvalidInput naming every field that cannot be accepted."""
    found = Violations()
    count = len(comparisons)
    found.check(count <= MAX_BATCH, "comparisons", f"expected at most {MAX_BATCH}, got {count}")
    for number, comparison in enumerate(comparisons[:MAX_BATCH]):
        where = f"comparisons[{number}]"
        _check_id(found, comparison.task_id, f"{where}.task_id")
        _check_id(found, comparison.annotator, f"{where}.annotator")
        _check_text(found, comparison.comment, f"{where}.comment")
        sure = comparison.confidence
        if sure is not None:
            within = math.isfinite(sure) and 0 <= sure <= 1
            found.check(within, f"{where}.confidence", f"expected 0 to 1, got {sure}")
        _check_id(found, comparison.ranking_id, f"{where}.ranking_id", empty=True)
        took = comparison.seconds
        if took is not None:
            within = math.isfinite(took) and 0 <= took <= MAX_SECONDS
            found.check(within, f"{where}.seconds", f"expected 0 to {MAX_SECONDS:g}, got {took}")
        by = comparison.margin
        if by is not None:
            found.check(math.isfinite(by), f"{where}.margin", f"expected a finite number, got {by}")
    found.raise_any()


def check_annotator(annotator: str) -> None:
    """Raises InvalidInput for a name that cannot be an annotator's."""
    found = Violations()
    _check_id(found, annotator, "annotator")
    found.raise_any()


def check_campaign(campaign: str) -> None:
    """Raises InvalidInput for a name that cannot be a campaign's; empty: all of them."""
    found = Violations()
    _check_id(found, campaign, "campaign", empty=True)
    found.raise_any()


def _check_id(found: Violations, value: str, where: str, *, empty: bool = False) -> None:
    if not empty:
        found.not_empty(value, where)
    length = f"expected at most {MAX_ID_CHARACTERS} characters, got {len(value)}"
    found.check(len(value) <= MAX_ID_CHARACTERS, where, length)
    _check_text(found, value, where)


def _check_text(found: Violations, value: str, where: str) -> None:
    found.check("\0" not in value, where, "expected text without NUL characters")  # PostgreSQL refuses them

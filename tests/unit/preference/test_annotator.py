"""The built-in annotator: what it says, that it ends, and that it goes through the same door as people."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.errors import Mismatch, Unavailable
from services.common.rules import make_rule
from services.preference.annotator import BuiltInAnnotator, Judge
from services.preference.domain import Choice, Comparison, Item, Message, Subject, Task, prompt_text
from services.preference.preferences import Preferences
from services.preference.ratings import RatingMethod
from services.preference.store import PreferenceStore
from tests.unit.preference.builders import item


@pytest.fixture
async def preferences(tmp_path: Path) -> AsyncIterator[Preferences]:
    opened = Preferences(lambda: PreferenceStore(f"sqlite:///{tmp_path / 'p.db'}"), RatingMethod(samples=20))
    await opened.open()
    yield opened
    await opened.close()


def task(first: str, second: str) -> Task:
    return Task(
        task_id="t",
        item=item(1, first, second),
        first_candidate_id="c0",
        second_candidate_id="c1",
        lease_until=0.0,
    )


async def until_annotated(preferences: Preferences, count: int) -> None:
    async with asyncio.timeout(30):
        while (await preferences.statistics()).comparisons < count:  # noqa: ASYNC110 - the store has no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("margin", "first", "second", "choice"),
    [
        (0.0, "a b c", "a b", Choice.FIRST),
        (0.0, "a b", "a b c", Choice.SECOND),
        (0.0, "a b", "c d", Choice.TIE),
        (1.0, "a b c", "a b", Choice.TIE),  # a difference of exactly the margin is a tie
        (1.0, "a b c d", "a b", Choice.FIRST),
    ],
)
def test_the_higher_score_wins(margin: float, first: str, second: str, choice: Choice) -> None:
    """Judged by length: more words win, and a difference up to the margin is a tie."""
    assert Judge(make_rule("length"), margin=margin).choose(task(first, second)) == (choice, "")


def test_what_cannot_be_scored_is_skipped_with_the_reason() -> None:
    """An answer too long for the rule makes the task a SKIP that says why, never a win."""
    choice, comment = Judge(make_rule("sentiment")).choose(task("good " * 20_000, "bad"))
    assert choice is Choice.SKIP
    assert "too long" in comment


def test_another_margin_is_another_judge() -> None:
    """Digests tell margins apart, since they give other comparisons."""
    assert Judge(make_rule("length")).digest != Judge(make_rule("length"), margin=1).digest


def test_prompt_text() -> None:
    """A single message is its content; several keep their roles."""
    assert prompt_text([Message("user", "hi")]) == "hi"
    assert prompt_text([Message("system", "be kind"), Message("user", "hi")]) == "system: be kind\n\nuser: hi"


async def test_it_labels_what_is_there_and_what_comes(preferences: Preferences) -> None:
    """Items from before and after its start are annotated, the positive answer preferred; then it ends."""
    annotator = BuiltInAnnotator(preferences, name="auto", rule="sentiment", poll_seconds=600)
    await annotator.register()
    await preferences.upload([item(n, "I love it", "I hate it") for n in range(5)])
    running = asyncio.create_task(annotator.run())
    await until_annotated(preferences, 5)
    await preferences.upload([item(n, "I love it", "I hate it") for n in range(5, 12)])
    await until_annotated(preferences, 12)
    annotator.stop()
    await asyncio.wait_for(running, 10)
    said = [comparison async for comparison, _ in preferences.comparisons()]
    assert {comparison.preferred for comparison in said} == {"c0"}
    assert {comparison.first_candidate_id for comparison in said} == {"c0", "c1"}
    assert {comparison.annotator for comparison in said} == {"auto"}


async def test_it_keeps_to_its_campaign(preferences: Preferences) -> None:
    """With a campaign it leaves the others' tasks alone."""
    annotator = BuiltInAnnotator(
        preferences, name="auto", rule="length", campaign="mine", poll_seconds=600, batch_tasks=2
    )
    await preferences.upload([item(n, campaign="mine" if n < 3 else "yours") for n in range(5)])
    running = asyncio.create_task(annotator.run())
    await until_annotated(preferences, 3)
    annotator.stop()
    await asyncio.wait_for(running, 10)
    assert (await preferences.statistics()).tasks_open == 2


class Flaky(Preferences):
    """Preferences whose first recording fails, as a database does that is away for a moment."""

    failures = 1

    async def record(self, comparisons: Sequence[Comparison], *, made_elsewhere: bool = False) -> int:
        if self.failures:
            self.failures -= 1
            raise Unavailable("the database cannot be used: away")
        return await super().record(comparisons, made_elsewhere=made_elsewhere)


async def test_it_tries_again_after_a_failure(tmp_path: Path) -> None:
    """A failed recording is repeated after the poll time, and nothing is lost."""
    preferences = Flaky(lambda: PreferenceStore(f"sqlite:///{tmp_path / 'p.db'}"), RatingMethod())
    await preferences.open()
    annotator = BuiltInAnnotator(preferences, name="auto", rule="length", poll_seconds=0.01)
    await preferences.upload([item(n) for n in range(3)])
    running = asyncio.create_task(annotator.run())
    await until_annotated(preferences, 3)
    annotator.stop()
    await asyncio.wait_for(running, 10)
    await preferences.close()
    assert preferences.failures == 0


async def test_leases_are_given_back(preferences: Preferences) -> None:
    """release() frees what the annotator holds, for others to take at once."""
    annotator = BuiltInAnnotator(preferences, name="auto", rule="length")
    await preferences.upload([item(1)])
    await preferences.next_tasks("auto")
    assert await preferences.next_tasks("ann") == []
    await annotator.release()
    assert len(await preferences.next_tasks("ann")) == 1


async def test_a_name_keeps_its_rule(preferences: Preferences) -> None:
    """Starting under the same name with another rule is refused."""
    await BuiltInAnnotator(preferences, name="auto", rule="sentiment").register()
    with pytest.raises(Mismatch, match="another name"):
        await BuiltInAnnotator(preferences, name="auto", rule="length").register()


async def test_fifteen_hundred_items_take_seconds(preferences: Preferences) -> None:
    """1,500 pairs in batches of 200, annotated by sentiment and rated, stay under 10 s of processor time."""
    pairs = [("What a lovely, helpful answer, thank you. " * 4, "That is awful and I hate it. " * 4)]
    items: list[Item] = []
    for n in range(1500):
        one = item(n, *pairs[0], sources=("policy@0", "policy@32"))
        items.append(replace(one, campaign="demo"))
    began = time.process_time()
    annotator = BuiltInAnnotator(preferences, name="auto", rule="sentiment")
    running = asyncio.create_task(annotator.run())
    for begin in range(0, len(items), 200):
        await preferences.upload(items[begin : begin + 200])
    await until_annotated(preferences, 1500)
    annotator.stop()
    await running
    ratings = await preferences.ratings(Subject.SOURCE, campaign="demo")
    assert time.process_time() - began < 10
    assert [(rating.subject, rating.comparisons) for rating in ratings] == [
        ("policy@0", 1500),
        ("policy@32", 1500),
    ]
    assert ratings[0].low > ratings[1].high

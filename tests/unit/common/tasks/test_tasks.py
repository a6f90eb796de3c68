"""The tasks: their prompts, what they reward, how they read other sources, how others are plugged in."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path

import pytest

from services.common.errors import InvalidInput, NotFound
from services.common.metrics import make_metric
from services.common.tasks import dates, increasing_numbers, prompts, sentiment, summarisation
from services.common.tasks.base import Task
from services.common.tasks.registry import find_task, prompt_rows, task_names, task_rows

GENERATED = ("summarisation", "increasing-numbers", "dates", "randomwalks")
needs_data = pytest.mark.skipif("TRIMTAB_DATA" not in os.environ, reason="TRIMTAB_DATA is not set")


@pytest.mark.parametrize("name", GENERATED)
def test_generated_prompts_are_the_same_for_a_seed(name: str) -> None:
    """Two readings are equal; rows have no empty prompt."""
    task = find_task(name)
    assert task_rows(task, limit=20) == task_rows(task, limit=20)
    assert all(row.text.strip() for row in task_rows(task))


@pytest.mark.parametrize("name", ["summarisation", "increasing-numbers", "dates"])
def test_splits_share_no_prompt(name: str) -> None:
    """What is trained on is not what is tested on; both splits have rows, another seed has other ones."""
    task = find_task(name)
    train, test = ({row.text for row in task_rows(task, split=split)} for split in ("train", "test"))
    assert train
    assert test
    assert not train & test
    assert {row.text for row in task_rows(task, split="train", seed=1)} != train


@pytest.mark.parametrize("name", task_names())
def test_what_a_task_names_is_there(name: str) -> None:
    """Its reward and its metrics can be made."""
    task = find_task(name)
    for spec in (*task.metrics, *([task.reward] if task.reward else [])):
        make_metric(spec)


def test_summaries_report_the_event() -> None:
    """The reference's subject and deed stand in the report, not always in its first sentence."""
    rows = task_rows(find_task("summarisation"), split="train", limit=50)
    events = [row.references[0].partition(" in ") for row in rows]
    assert all(event[0].lower() in row.text.lower() for event, row in zip(events, rows, strict=True))
    heads = [
        event[0].lower() in row.text.split(". ")[0].lower() for event, row in zip(events, rows, strict=True)
    ]
    assert 5 < sum(heads) < 45
    assert all(row.as_json()["reference"] == row.references[0] for row in rows)


@needs_data
def test_sentiment_gives_the_first_words_of_reviews() -> None:
    """Five words each; a tenth of the reviews is for testing."""
    task = find_task("sentiment")
    train, test = (task_rows(task, split=split) for split in ("train", "test"))
    assert {len(row.text.split()) for row in train} == {5}
    assert 0.08 < len(test) / (len(test) + len(train)) < 0.12


@needs_data
def test_dialogue_ends_with_the_user_and_has_the_preferred_answer() -> None:
    """Messages alternate, the last is a person's, and there is one reference."""
    rows = task_rows(find_task("dialogue"), limit=50)
    assert len(rows) == 50
    for row in rows:
        assert not isinstance(row.prompt, str)
        assert row.prompt[-1][0] == "user"
        assert len(row.references) == 1


def test_data_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TRIMTAB_DATA the file is named, and a source that can be given instead."""
    monkeypatch.delenv("TRIMTAB_DATA", raising=False)
    with pytest.raises(NotFound, match=r"sentence_polarity.jsonl.gz .* --data 'datasets:stanfordnlp/imdb"):
        task_rows(find_task("sentiment"))
    with pytest.raises(InvalidInput, match="no prompts of its own"):
        task_rows(find_task("prompts"))


def test_increasing_numbers_by_hand() -> None:
    """Numbers from the first to the first that is not larger, over words, of which ten are always asked for."""
    assert increasing_numbers.increasing("1, 2, 3.") == 0.3
    assert increasing_numbers.increasing("1 2 2 3") == 0.2
    assert increasing_numbers.increasing(" ".join(map(str, range(12)))) == 1
    assert increasing_numbers.increasing("and 5 then 7" + " x" * 16) == 2 / 20
    assert increasing_numbers.score(prompts=[""], completions=["nan inf"]) == [0]


def test_dates_by_hand() -> None:
    """Sentences with a date of the calendar over sentences; 31 February is none."""
    assert dates.dated("It was 05/11/2026. Then nothing.") == 0.5
    assert dates.dated("On 31/02/2026 it rained.") == 0
    assert dates.score(
        completions=["Born 5 May 1921.", "On May 5th, 1921 she left", "since 1921-05-05", "1921", ""]
    ) == [
        1,
        1,
        1,
        0,
        0,
    ]


def test_published_data_sets_are_read() -> None:
    """TL;DR, CNN/DailyMail, XSum, IMDB, HH, TRL's prompt sets: prompt and references as those data sets write them."""
    tldr = summarisation.read({"prompt": "POST: x\n\nTL;DR:", "completion": " short"})
    assert (tldr.prompt, tldr.references) == ("POST: x\n\nTL;DR:", (" short",))
    news = summarisation.read({"article": "Long.", "highlights": "L.", "id": "1"})
    assert (news.prompt, news.references) == ("Long.\n\nTL;DR:", ("L.",))
    review = sentiment.opening({"text": "one two three four five six seven eight nine ten", "label": 1})
    assert review is not None
    assert review.prompt == "one two three four five"
    assert sentiment.opening({"text": "too short"}) is None
    pair = prompts.TASK.read(
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    )
    assert pair is not None
    assert (pair.prompt, pair.references) == ((("user", "a"),), ("b",))
    chat = prompts.TASK.read(
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "n": 3}
    )
    assert chat is not None
    assert (chat.prompt, chat.references, dict(chat.columns)) == ((("user", "a"),), ("b",), {"n": "3"})
    with pytest.raises(InvalidInput, match="expected a column among prompt"):
        prompts.TASK.read({"x": 1})


def test_any_source_gives_a_runs_prompts(tmp_path: Path) -> None:
    """data.prompts takes a file, a task, or a data set of `datasets`; a bad row is named by its place."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a", "answer": "b"}) + "\n", encoding="utf-8")
    assert [row for _, row in prompt_rows(str(file), "train")] == [{"prompt": "a", "answer": "b"}]
    [first, *_] = prompt_rows("task:dates", "test")
    assert first[0] == "task:dates:1"
    assert first[1]["prompt"] == task_rows(find_task("dates"))[0].prompt
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    datasets.Dataset.from_list([{"prompt": "a", "answer": "b"}]).save_to_disk(tmp_path / "saved")
    found = dict(prompt_rows(f"datasets:{tmp_path}/saved", "train"))
    assert found == {f"datasets:{tmp_path}/saved:1": {"prompt": "a", "reference": "b", "answer": "b"}}
    file.write_text(json.dumps({"prompt": 5}) + "\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"rows\.jsonl:1: prompt: expected"):
        task_rows(find_task("prompts"), data=str(file))


def test_tasks_are_plugged_in_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point of group trimtab.tasks is found by its name, one that names no Task is refused."""
    points = [
        importlib.metadata.EntryPoint("mine", "services.common.tasks.dates:TASK", "trimtab.tasks"),
        importlib.metadata.EntryPoint("wrong", "services.common.tasks.dates:ROWS", "trimtab.tasks"),
    ]

    def entry_points(*, group: str, name: str = "") -> list[importlib.metadata.EntryPoint]:
        return [point for point in points if group == point.group and name in ("", point.name)]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert isinstance(find_task("mine"), Task)
    assert task_names()[-2:] == ["mine", "wrong"]
    with pytest.raises(InvalidInput, match="expected a Task, got int"):
        find_task("wrong")
    with pytest.raises(InvalidInput, match="there is no task 'none'"):
        find_task("none")

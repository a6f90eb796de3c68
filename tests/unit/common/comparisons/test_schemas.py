"""Every known format says what it means, and a row that says nothing names the field that is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.comparisons import BestOf, Comparison, Message, Ranking, Record, read
from services.common.errors import InvalidInput


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def one(row: dict[str, Any]) -> Record:
    (record,) = read([row])
    return record


ASKED = (Message("user", "hi"),)
PAIR = {"prompt": "hi", "chosen": "yes", "rejected": "no"}
SUMMARIES = {
    "info": {
        "id": "t3_1",
        "post": "Long.",
        "title": "Title",
        "subreddit": "r/x",
        "site": None,
        "article": None,
    },
    "summaries": [
        {"text": "a", "policy": "sup4", "note": "ok"},
        {"text": "b", "policy": "ref", "note": None},
    ],
    "choice": 1,
    "worker": "w1",
    "batch": "batch3",
    "split": "train",
    "extra": {"confidence": 7},
}


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"prompt": [user("hi")], "chosen": [assistant("yes")], "rejected": [assistant("no")]},
        {"prompt": [user("hi")], "chosen": "yes", "rejected": "no"},
        {"prompt": "hi", "chosen": [assistant("yes")], "rejected": [assistant("no")]},
        {"chosen": "hi yes", "rejected": "hi no"},
        {"chosen": [user("hi"), assistant("yes")], "rejected": [user("hi"), assistant("no")]},
        {"prompt": None, "chosen": [user("hi"), assistant("yes")], "rejected": [user("hi"), assistant("no")]},
        {"prompt": "hi", "chosen": [user("hi"), assistant("yes")], "rejected": [user("hi"), assistant("no")]},
        {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
        {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": "yes", "rejected": "no"},
        {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " yes", "rejected": " no"},
    ],
)
def test_a_pair_in_every_schema(row: dict[str, Any]) -> None:
    """TRL's four schemas, UltraFeedback's mixture and HH-RLHF's dialogues say the same."""
    record = one(row)
    assert isinstance(record, Comparison)
    assert (record.prompt, record.chosen, record.rejected) == (ASKED, "yes", "no")
    assert record.answers == ("yes", "no")
    assert (record.wins(), record.ties()) == (((0, 1),), ())
    assert record.origin.group == one(PAIR).origin.group != ""


def test_texts_without_a_prompt_part_between_words() -> None:
    """The prompt is what both begin with, in whole words, however long; answers keep their own blanks."""
    record = one({"chosen": "The sky\nis  green, see?", "rejected": "The sky\nis  grey "})
    assert record.prompt == (Message("user", "The sky\nis"),)
    assert record.answers == ("green, see?", "grey ")


@pytest.mark.parametrize("name", ["question", "instruction", "input", "query"])
def test_a_prompt_under_another_name_is_not_what_answers_begin_with(name: str) -> None:
    """Answers that begin alike beside a column that asks something: the row is refused, not read without it."""
    row = {"system": "Be brief.", name: "Is it?", "chosen": "Sure! Yes.", "rejected": "Sure! No."}
    with pytest.raises(InvalidInput, match=f"prompt: expected the prompt under this name, there is {name}"):
        one(row)
    assert one(row | {"prompt": "Is it?"}).answers == ("Sure! Yes.", "Sure! No.")
    assert one(row | {name: ""}).prompt == (Message("user", "Sure!"),)


def test_numbers_of_tables_with_gaps_are_whole() -> None:
    """A column with nulls has 2.0 for 2: as a choice, as the best, as an id."""
    assert one(SUMMARIES | {"choice": 1.0}) == one(SUMMARIES | {"choice": 1})
    assert one({"query": "hi", "sample0": "a", "sample1": "b", "best": 1.0}).answers[1] == "b"
    assert one(PAIR | {"prompt_id": 7.0}).origin.group == "7"


def test_a_prompt_of_a_conversation_has_both_names() -> None:
    """The id makes the group; the conversation's name is kept beside it."""
    both = one(PAIR | {"prompt_id": "p1", "tree": "t"}).origin
    assert (both.group, both.tree) == ("p1", "t")
    assert (one(PAIR | {"tree": "t"}).origin.group, one(PAIR).origin.tree) == ("t", "")


def test_a_dialogue_keeps_its_turns() -> None:
    """All turns before the last answer are the prompt, each with its role."""
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    record = one({"chosen": text + "good", "rejected": text + "bad"})
    assert record.prompt == (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert record.answers == ("good", "bad")


def test_columns_of_a_pair() -> None:
    """Margin, confidence, sources and ids come along; a number is as good a name as any; prompt_id makes the group."""
    row = PAIR | {"margin": 2, "confidence": 0.75, "chosen_source": "policy@2", "prompt_id": 7, "tree": "t"}
    record = one(row | {"annotator": "ann", "campaign": "c", "item_id": "i", "rejected_source": "policy@1"})
    assert isinstance(record, Comparison)
    origin = record.origin
    assert (record.margin, origin.confidence) == (2.0, 0.75)
    assert record.sources == ("policy@2", "policy@1")
    assert (origin.prompt_id, origin.group, origin.item_id) == ("7", "7", "i")
    assert (origin.annotator, origin.campaign, origin.place) == ("ann", "c", "row 1")
    assert one(PAIR | {"tree": "t"}).origin.group == "t"


def test_a_summary_comparison_of_openai() -> None:
    """`choice` is the index of the better summary; worker, policies, post and confidence (1 to 9) come along."""
    record = one(SUMMARIES)
    assert isinstance(record, Comparison)
    assert record.prompt == (Message("user", "SUBREDDIT: r/x\nTITLE: Title\nPOST: Long.\n\nTL;DR:"),)
    assert (record.chosen, record.rejected) == ("b", "a")
    assert record.sources == ("ref", "sup4")
    assert (record.origin.annotator, record.origin.group) == ("w1", "t3_1")
    assert record.origin.confidence == 0.75
    news = SUMMARIES | {"info": {"id": "1", "article": "News."}, "extra": {"confidence": None}, "choice": 0}
    record = one(news)
    assert record.prompt == (Message("user", "ARTICLE: News.\n\nTL;DR:"),)
    assert (record.answers, record.origin.confidence) == (("a", "b"), None)


def test_best_of_four() -> None:
    """The best one beats each other one; about the rest nothing was said, and an equal text was not beaten."""
    row = {"query": "hi", "sample0": "a", "sample1": "b", "sample2": "c", "sample3": "b", "best": 1}
    record = one(row)
    assert isinstance(record, BestOf)
    assert (record.prompt, record.answers, record.best) == (ASKED, ("a", "b", "c", "b"), 1)
    assert (record.wins(), record.ties()) == (((1, 0), (1, 2)), ())


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "ranked": ["a", ["b", "c"], "d"]},
        {"prompt": "hi", "answers": ["d", "b", "a", "c"], "ranks": [4, 2, 1, 2]},
        {
            "prompt": "hi",
            "answers": [
                {"answer": text, "rank": rank} for text, rank in (("d", 4.0), ("b", 2), ("c", 2), ("a", 1))
            ],
        },
    ],
)
def test_a_ranked_list(row: dict[str, Any]) -> None:
    """Four answers, two of them equally good: five wins and a tie, the same in each way to write it."""
    record = one(row)
    assert isinstance(record, Ranking)
    assert (record.answers, record.ranks) == (("a", "b", "c", "d"), (1, 2, 2, 4))
    assert record.wins() == ((0, 1), (0, 2), (0, 3), (1, 3), (2, 3))
    assert record.ties() == ((1, 2),)


ROWS: list[dict[str, Any]] = [
    PAIR | {"margin": 0.5},
    SUMMARIES,
    {"query": "hi", "sample0": "a", "sample1": "b", "best": 0},
    {"query": "hi", "sample0": "a", "sample1": "b", "sample2": "c", "best": 0},
    {"prompt": "hi", "ranked": ["a", "b", "c"]},
    {"prompt": "hi", "answers": ["a", "b", "c"], "ranks": [1, 2, 3]},
]


@pytest.mark.parametrize("row", ROWS)
def test_a_null_column_is_an_absent_one(row: dict[str, Any]) -> None:
    """A row of a table in which all formats have their columns says what it says alone."""
    everything = dict.fromkeys(name for other in ROWS for name in other)
    assert one(everything | row) == one(row)


def test_the_models_of_a_ranked_list() -> None:
    """Nectar names the model of each answer; it travels with its answer."""
    answers = [{"answer": "a", "model": "m1", "rank": 2}, {"answer": "b", "model": "m2", "rank": 1}]
    record = one({"prompt": "\n\nHuman: hi\n\nAssistant: ", "answers": answers})
    assert (record.prompt, record.answers, record.sources) == (ASKED, ("b", "a"), ("m2", "m1"))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "x", "label": 1}, "row: expected the fields of a known format"),
        ({}, "row: expected the fields of a known format"),
        (
            dict.fromkeys(("chosen", "rejected", "sample0")),
            (
                "row: expected the fields of a known format (chosen and rejected; summaries and choice; "
                "query, sample0, … and best; ranked; answers and ranks), "
                "got no field, and nothing in chosen, rejected, sample0"
            ),
        ),
        (PAIR | {"rejected": None}, "rejected: expected text or a list of messages, there is none"),
        (
            {"query": "hi", "sample0": "a", "sample1": None, "sample2": "b", "best": 0},
            "sample0: expected sample0, sample1, … without a gap, got 2 samples",
        ),
        (PAIR | {"rejected": "yes"}, "rejected: expected another text than chosen"),
        (
            PAIR | {"rejected": [1, 2]},
            "rejected: expected text or a list of messages, got a list of numbers (token ids?)",
        ),
        (PAIR | {"chosen": 1.5}, "chosen: expected text or a list of messages, got a number"),
        (
            PAIR | {"chosen": [user("yes")]},
            "chosen: expected an answer of the assistant at the end, got role",
        ),
        (PAIR | {"prompt_id": 7.5}, "prompt_id: expected text, got a number"),
        ({"chosen": "yes", "rejected": "no"}, "chosen: expected a prompt column, a dialogue, or a text"),
        (
            {"chosen": "Human: hi\n\nAssistant: yes", "rejected": "Human: hi\n\nAssistant: no"},
            "chosen: expected a dialogue that begins with '\\n\\nHuman:'",
        ),
        (PAIR | {"chosen": "a\0"}, "chosen: expected text without NUL"),
        (PAIR | {"margin": "2"}, "margin: expected a number, got text"),
        (PAIR | {"margin": True}, "margin: expected a number, got true or false"),
        (PAIR | {"margin": float("nan")}, "margin: expected a finite number, got nan"),
        (PAIR | {"margin": 10**400}, "margin: expected a finite number"),
        (PAIR | {"confidence": 1.5}, "confidence: expected a finite number from 0 to 1, got 1.5"),
        (
            PAIR | {"chosen": [user("other"), assistant("a")], "rejected": [user("other"), assistant("b")]},
            "prompt: expected the text of the last message before the answers",
        ),
        (
            {"chosen": [assistant("b"), user("a")], "rejected": [assistant("b"), user("c")]},
            "chosen: expected an answer of the assistant at the end, got role user",
        ),
        (SUMMARIES | {"choice": 2}, "choice: expected a whole number from 0 to 1, got 2"),
        (SUMMARIES | {"choice": 0.5}, "choice: expected a whole number from 0 to 1, got 0.5"),
        (SUMMARIES | {"choice": None}, "choice: expected a whole number from 0 to 1, got null"),
        (SUMMARIES | {"info": None}, "info: expected an object, got null"),
        (SUMMARIES | {"info": {"id": "1"}}, "info.article: expected text, got null"),
        (SUMMARIES | {"summaries": [{"text": "a"}]}, "summaries: expected at least 2 answers, got 1"),
        (
            SUMMARIES | {"summaries": [{"text": "a"}, {"text": 3}]},
            "summaries[1].text: expected text, got a number",
        ),
        (SUMMARIES | {"summaries": [{"text": "a"}] * 2}, "summaries: expected two texts that differ"),
        (
            SUMMARIES | {"extra": {"confidence": 0}},
            "extra.confidence: expected a finite number from 1 to 9, got 0",
        ),
        ({"query": "hi", "sample0": "a", "sample2": "b", "best": 0}, "sample0: expected sample0, sample1, …"),
        (
            {"query": "hi", "sample0": "a", "sample1": "b", "best": 2},
            "best: expected a whole number from 0 to 1, got 2",
        ),
        (
            {"query": [4, 5], "sample0": "a", "sample1": "b", "best": 0},
            "query: expected text or a list of messages, got a list of numbers (token ids?)",
        ),
        ({"query": "hi", "sample0": "a", "sample1": "a", "best": 0}, "sample1: expected samples that differ"),
        ({"prompt": "hi", "ranked": ["a"]}, "ranked: expected at least 2 answers, got 1"),
        ({"prompt": "hi", "ranked": ["a", "b", "a"]}, "ranked: expected answers that differ"),
        ({"prompt": "hi", "ranked": ["a", ["b", 3]]}, "ranked[1]: expected text, got a number"),
        ({"ranked": ["a", "b"]}, "prompt: expected text or a list of messages, got null"),
        ({"prompt": "hi", "ranks": [1, 2]}, "answers: expected a list, got null"),
        (
            {"prompt": "hi", "answers": ["a", "b"], "ranks": [1]},
            "ranks: expected one for each of 2 answers, got 1",
        ),
        (
            {"prompt": "hi", "answers": ["a", "b"], "ranks": [0, 1]},
            "ranks[0]: expected a whole number from 1",
        ),
        (
            {"prompt": "hi", "answers": ["a", "b"], "ranks": [1, 1.5]},
            "ranks[1]: expected a whole number from 1",
        ),
        (
            {"prompt": "hi", "answers": [{"answer": "a", "rank": 1}, "b"]},
            "answers[0]: expected text, got an object",
        ),
    ],
)
def test_a_bad_row_names_its_field(row: dict[str, Any], says: str) -> None:
    """In one line: the place, the field, what was expected and what is there."""
    with pytest.raises(InvalidInput) as caught:
        one(row)
    assert str(caught.value).startswith(f"row 1: {says}")
    assert "\n" not in str(caught.value)
    assert len(caught.value.violations) == 1

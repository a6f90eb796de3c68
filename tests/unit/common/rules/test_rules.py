"""Rules: values worked out by hand from their definitions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from services.common.errors import InvalidInput
from services.common.rules import make_rule, rule_names


def score(spec: str, completion: str) -> float:
    return make_rule(spec).score("a prompt", completion, {})


@pytest.mark.parametrize(
    ("text", "valence"),
    [
        ("The food is good.", 1.9),  # the lexicon's mean rating of "good"
        ("not good", 1.9 * -0.74),  # negation, Hutto and Gilbert 2014
        ("the table", 0.0),
        ("", 0.0),
    ],
)
def test_sentiment_is_the_normalised_valence(text: str, valence: float) -> None:
    """The compound is v / sqrt(v^2 + 15), rounded to four places."""
    assert score("sentiment", text) == pytest.approx(valence / math.sqrt(valence**2 + 15), abs=5e-5)


def test_sentiment_is_bounded_and_refuses_what_is_too_long() -> None:
    """The score stays within -1 and 1; an absurdly long one is an error, never a number."""
    assert 0.99 < score("sentiment", "good " * 500) <= 1
    with pytest.raises(InvalidInput, match="at most 20000"):
        score("sentiment", "good but " * 3000)


@pytest.mark.parametrize(
    ("spec", "text", "expected"),
    [
        ("length", "one  two\nthree", 3.0),
        ("length", "", 0.0),
        ("length:target=4", "one two three four", 0.0),
        ("length:target=4", "one two three", -0.25),
        ("length:target=4", "one two three four five six", -0.5),
        ("length:target=4", "", -1.0),
        ("regex:pattern=[0-9]+", "no. 12, no. 7", 1.0),
        ("regex:pattern=[0-9]+", "none", 0.0),
        ("regex:mode=fullmatch,pattern=[0-9]+", "12", 1.0),
        ("regex:mode=fullmatch,pattern=[0-9]+", "12.", 0.0),
        ("regex:mode=count,pattern=[0-9]+", "no. 12, no. 7", 2.0),
        ("regex:pattern=a=b,{1,2}:", "a=b,,:", 1.0),
        ("repetition", "the cat the cat the cat", 2 / 5),
        ("repetition", "The cat the dog", 1.0),
        ("repetition:n=1", "a b a b", 0.5),
        ("repetition:n=3", "a b", 1.0),
    ],
)
def test_values(spec: str, text: str, expected: float) -> None:
    """Each rule gives the value that its docstring defines."""
    assert score(spec, text) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("lenght", "there are bleu, exact, json, length, numeric, regex, repetition, rouge, sentiment"),
        ("length:target=0", "whole number from 1"),
        ("length:target=four", "whole number from 1"),
        ("length:goal=4", "no option 'goal'"),
        ("length:target", "key=value"),
        ("length:target=1,target=2", "each key once"),
        ("regex", "regex:pattern="),
        ("regex:pattern=(", "no regular expression"),
        ("regex:mode=find,pattern=a", "search, fullmatch, count"),
        ("rouge:variant=3", "expected one of L, 1, 2"),
        ("bleu:metric=ter", "expected one of bleu, chrf"),
        ("bleu:column=", "name of a column"),
        ("exact:normalise=all", "expected one of text, squad, none"),
        ("numeric:tolerance=-1", "a number from 0 on"),
        ("numeric:tolerance=nan", "a number from 0 on"),
        ("json:schema=nowhere.json", "nowhere.json is no JSON schema: No such file"),
    ],
)
def test_a_wrong_specification_is_one_clear_line(spec: str, says: str) -> None:
    """A specification that cannot be read is InvalidInput and says what was expected."""
    with pytest.raises(InvalidInput, match=says.replace("(", r"\(")) as caught:
        make_rule(spec)
    assert "\n" not in str(caught.value)
    assert caught.value.violations


def test_names_make_the_same_rule_again_and_digests_tell_rules_apart() -> None:
    """A rule's name is a specification of it; digests are equal for equal rules and for no others."""
    specs = [
        "sentiment",
        "length",
        "length:target=4",
        "regex:pattern=a,b",
        "regex:mode=count,pattern=a",
        "repetition",
        "rouge",
        "rouge:variant=2,column=gold",
        "bleu",
        "bleu:metric=chrf",
        "exact",
        "exact:normalise=squad",
        "numeric",
        "numeric:tolerance=0.01",
        "json",
        "toxic_words",
    ]
    rules = [make_rule(spec) for spec in specs]
    assert [make_rule(rule.name).digest for rule in rules] == [rule.digest for rule in rules]
    assert len({rule.digest for rule in rules}) == len(rules)
    assert {rule.name.partition(":")[0] for rule in rules} == set(rule_names())


def test_a_list_of_toxic_words_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that is made after its file was edited, as by a swap, scores by the new list; ~ is the home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "words.txt").write_text("drat\n")
    first = make_rule("toxic_words:file=~/words.txt")
    (tmp_path / "words.txt").write_text("drat\n\nDon't\n")
    second = make_rule("toxic_words:file=~/words.txt")
    assert first.score("", "Don't, drat!", {}) == -1 / 2
    assert second.score("", "Don't, drat!", {}) == -1.0
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"drat\n\xe9\n", "no text in UTF-8"),
        (b"drat\nson of a gun\n", ":2: 'son of a gun' is no word"),
        (b"l33t\n", ":1: 'l33t' is no word"),
    ],
)
def test_a_list_of_toxic_words_that_cannot_work_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    """A line that no text could ever match would be taken for a word that nobody says."""
    file = tmp_path / "words.txt"
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=told):
        make_rule(f"toxic_words:file={file}")

"""Rules against a reference or an answer: values worked out by hand from their definitions."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import pytest

from services.common.errors import InvalidInput
from services.common.rules import make_rule
from services.common.rules.bleu import _CACHED_CHARACTERS

CAT = {"reference": "The cat sat on the mat."}


def score(spec: str, completion: str, columns: Mapping[str, str]) -> float:
    return make_rule(spec).score("a prompt", completion, columns)


@pytest.mark.parametrize(
    ("spec", "text", "expected"),
    [
        ("rouge:variant=1", "the cat on the mat", 2 * 5 / (5 + 6)),
        ("rouge:variant=2", "the cat on the mat", 2 * 3 / (4 + 5)),
        ("rouge:variant=1", "the the the", 2 * 2 / (3 + 6)),  # clipped at the reference's two
        ("rouge", "the cat on the mat", 2 * 5 / (5 + 6)),
        (
            "rouge",
            "mat the on sat cat the",
            2 * 3 / (6 + 6),
        ),  # "the cat the" is the longest common subsequence
        ("rouge", "THE CAT, sat on the mat!", 1.0),
        ("rouge", "", 0.0),
        ("rouge:variant=2", "cat", 0.0),
    ],
)
def test_rouge_is_the_f1_of_its_definition(spec: str, text: str, expected: float) -> None:
    """Lin 2004 with precision and recall weighed equally, words in lower case without punctuation."""
    assert score(spec, text, CAT) == pytest.approx(expected, abs=1e-12)


def test_bleu_is_the_sentence_score_of_its_definition() -> None:
    """Precisions 5/5, 3/4, 1/3 and, none of two being right, 1/(2*2); brevity exp(1 - 6/5)."""
    columns = {"reference": "the cat sat on the mat"}
    expected = math.exp(-0.2) * (1 * 0.75 / 3 * 0.25) ** 0.25
    assert score("bleu", "the cat on the mat", columns) == pytest.approx(expected, abs=1e-9)
    assert score("bleu", columns["reference"], columns) == 1.0
    assert score("bleu", "", columns) == 0.0


def test_chrf_is_the_f2_of_character_ngrams() -> None:
    """For "ab" against "abc": precision 1, recall (2/3 + 1/2) / 2; F2 of both."""
    recall = (2 / 3 + 1 / 2) / 2
    expected = 5 * recall / (4 + recall)
    assert score("bleu:metric=chrf", "ab", {"reference": "abc"}) == pytest.approx(expected, abs=1e-9)


def test_bleu_keeps_no_texts() -> None:
    """The tokeniser's caches are emptied before they hold much: memory does not grow with the calls."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    rule = make_rule("bleu")
    text = "some words " * 1000
    rows = 3 * _CACHED_CHARACTERS // len(text)
    for row in range(rows):
        rule.score("", f"{row} {text}", {"reference": "words"})
    assert Tokenizer13a.__call__.cache_info().currsize < rows / 2


@pytest.mark.parametrize(
    ("spec", "text", "answer", "expected"),
    [
        ("exact", " Forty\n  TWO ", "forty two", 1.0),
        ("exact", "\uff14\uff12", "42", 1.0),  # full width
        ("exact", "forty-two", "forty two", 0.0),
        ("exact", "", "", 1.0),
        ("exact:normalise=squad", "The Answer!", "an answer", 1.0),
        ("exact:normalise=squad", "Theanswer", "the answer", 0.0),
        ("exact:normalise=none", "a", "a ", 0.0),
        ("exact:normalise=none", "a ", "a ", 1.0),
    ],
)
def test_exact_compares_after_its_normalisation(spec: str, text: str, answer: str, expected: float) -> None:
    """1 for what is equal after the normalisation that the option names, else 0."""
    assert score(spec, text, {"answer": answer}) == expected


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("First 41, then 42.", "42", 1.0),
        ("42, not 41.", "42", 0.0),  # the last number counts
        ("#### 42 apples of 100", "42", 1.0),
        ("17 #### 42 apples", "Natalia sold 48/2 = 24 clips. #### 42", 1.0),
        ("#### none, though I said 42", "42", 1.0),
        ("the 42 #### none", "42", 0.0),
        (r"so \boxed{42} because of 7", "42", 1.0),
        (r"\boxed{7} or \boxed{{42}}", "42", 1.0),
        (r"\boxed{x} 42", "42", 0.0),  # an answer is marked, and it is no number
        (r"\boxed{42", "42", 1.0),
        (r"\boxed{-\frac{84}{2}}", "-42", 1.0),
        (r"\boxed{\dfrac{1}{3}}", "1/3", 1.0),
        ("3 / 4", "0.75", 1.0),
        ("1/0", "0", 0.0),
        ("$1,234.50", "1234.5", 1.0),
        ("1,2,3", "3", 1.0),
        ("4.2e1", "42", 1.0),
        (".5", "0.5", 1.0),
        ("-42", "42", 0.0),
        ("\u221242", "-42", 1.0),  # the typographic minus
        ("50-42", "42", 1.0),  # a hyphen or an operator, no sign
        ("42%", "42", 1.0),
        ("no number", "42", 0.0),
        ("42.0000001", "42", 1.0),
        ("42.1", "42", 0.0),
        ("1000.0009", "1000", 1.0),  # relative above 1: 1e-6 * 1000
        ("1e999999", "1", 0.0),
        (r"\boxed{11,\!760}", "11760", 1.0),  # MATH's thousands
        (r"\boxed{11\,760}", "11760", 1.0),
        ("1{,}234", "1234", 1.0),
        (r"\boxed{1,\,234}", "234", 1.0),  # a list of two
        (r"\boxed{1,\ 234}", "234", 1.0),
        (r"\boxed{\frac34}", "0.75", 1.0),
        (r"\boxed{-\dfrac 3{4}}", "-0.75", 1.0),
        (r"\boxed{\frac{3}4}", "0.75", 1.0),
        (r"\boxed{12\text{ cm}^2}", "12", 1.0),
        (r"\boxed{12\,\mathrm{cm}^{2}}", "12", 1.0),
        (r"\boxed{12\text{ cm^2}}", "12", 1.0),
        (r"\boxed{\text{42 apples}}", "42", 1.0),
        (r"\boxed{\left(-42\right)}", "-42", 1.0),
        (r"\boxed{\frac{}4}", "4", 1.0),
    ],
)
def test_numeric_finds_the_answer(text: str, answer: str, expected: float) -> None:
    """Boxed before ####, #### before the last number; equal within 1e-6 * max(1, |answer|)."""
    assert score("numeric", text, {"answer": answer}) == expected


def test_numeric_with_a_tolerance_of_zero_is_exact_beyond_floats() -> None:
    """Two numbers that are one float are told apart."""
    columns = {"answer": "12345678901234567890"}
    assert score("numeric:tolerance=0", "12345678901234567890", columns) == 1.0
    assert score("numeric:tolerance=0", "12345678901234567891", columns) == 0.0


@pytest.mark.parametrize(
    ("spec", "columns", "field"),
    [
        ("rouge", {}, "columns[reference]"),
        ("rouge", {"reference": "\u6c34"}, "columns[reference]"),
        ("bleu", {"other": "a"}, "columns[reference]"),
        ("bleu", {"reference": " "}, "columns[reference]"),
        ("bleu:metric=chrf,column=gold", {"reference": "a"}, "columns[gold]"),
        ("exact", {}, "columns[answer]"),
        ("exact:column=label", {"answer": "a"}, "columns[label]"),
        ("numeric", {}, "columns[answer]"),
        ("numeric", {"answer": "none"}, "columns[answer]"),
    ],
)
def test_a_missing_or_useless_column_is_named(spec: str, columns: Mapping[str, str], field: str) -> None:
    """A row without what a rule compares with is InvalidInput naming the column, never 0."""
    with pytest.raises(InvalidInput) as caught:
        score(spec, "a completion", columns)
    assert list(caught.value.violations) == [field]


HOSTILE = ["1" * 200_000, "1,111" * 40_000, "1.1" * 60_000, r"\boxed{" * 20_000, r"\frac{1" * 20_000]
HOSTILE += [r"\text{^-" * 20_000, r"\frac1" * 30_000, r"1\," * 60_000, r"\text{^-1" * 20_000]
HOSTILE += ["- " * 100_000, "$" * 200_000, "a b " * 25_000, "\n" * 200_000, "a" * 2_000_000]


@pytest.mark.parametrize("spec", ["rouge", "rouge:variant=2", "bleu", "bleu:metric=chrf", "exact", "numeric"])
def test_hostile_rows_end_soon(spec: str) -> None:
    """Whatever a row holds, it is a number or an error within seconds, on a slow machine too."""
    rule = make_rule(spec)
    began = time.monotonic()
    for text in HOSTILE:
        for columns in ({"reference": "b a " * 12_000, "answer": "42"}, {"reference": text, "answer": text}):
            try:
                assert 0.0 <= rule.score("", text, columns) <= 1.0
            except InvalidInput:
                continue
    assert time.monotonic() - began < 60

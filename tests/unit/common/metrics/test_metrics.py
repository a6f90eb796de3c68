"""Each metric against numbers worked out by hand, and against the library whose name it has."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from services.common.errors import InvalidInput, NotFound
from services.common.metrics import AdditiveMetric, Sample, make_metric, metric_names
from services.common.metrics.intervals import measure
from services.common.metrics.own import Distinct
from services.common.rules import make_rule


def value(metric: str, *pairs: tuple[str, str]) -> float:
    """Of completions with a reference each."""
    groups = [
        [Sample(prompt="", completion=completion, references=(reference,))] for completion, reference in pairs
    ]
    return measure(make_metric(metric), groups).value


def test_bleu_by_hand() -> None:
    """Precisions 4/5, 3/4, 2/3, 1/2 give 100 * 0.2^(1/4); a brevity penalty exp(1 - 5/4) takes its part."""
    assert value("bleu", ("a b c d e", "a b c d f")) == pytest.approx(100 * 0.2**0.25)
    assert value("bleu", ("a b c d", "a b c d e")) == pytest.approx(100 * math.exp(1 - 5 / 4))


def test_bleu_smooths_orders_without_a_match() -> None:
    """Matches 2/4, 1/3, none of 2 (1/4) and none of 1 (1/4); no match at all, or too few words, is 0."""
    assert value("bleu", ("a b x y", "a b c d")) == pytest.approx(
        100 * (1 / 2 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25
    )
    assert value("bleu", ("x y z w", "a b c d")) == 0
    assert value("bleu", ("a b", "a b")) == 0


def test_chrf_by_hand() -> None:
    """abc against abd: precision and recall 2/3, 1/2, 0 over the three orders there are, mean 7/18."""
    assert value("chrf", ("abc", "abd")) == pytest.approx(100 * 7 / 18)
    assert value("chrf", ("a b", "ab")) == pytest.approx(100)


@pytest.mark.parametrize(("name", "library"), [("bleu", "BLEU"), ("chrf", "CHRF")])
def test_corpus_scores_are_sacrebleus(name: str, library: str) -> None:
    """On 60 random pairs with two references each the corpus score is sacrebleu's corpus_score."""
    sacrebleu = pytest.importorskip("sacrebleu.metrics", reason="the extra `metrics` is not installed")
    draw = random.Random(7)
    texts = [
        " ".join(
            draw.choices(["the", "cat", "sat", "on", "a", "mat", ",", "dog", "."], k=draw.randint(1, 14))
        )
        for _ in range(180)
    ]
    completions, first, second = texts[:60], texts[60:120], texts[120:]
    groups = [
        [Sample(prompt="", completion=one, references=(a, b))]
        for one, a, b in zip(completions, first, second, strict=True)
    ]
    expected = getattr(sacrebleu, library)().corpus_score(completions, [first, second]).score
    assert measure(make_metric(name), groups).value == pytest.approx(expected, abs=1e-9)


def test_rouge_by_hand() -> None:
    """the cat sat against the cat ran: 2 of 3 words, 1 of 2 pairs, a common subsequence of 2 of 3; stems are equal."""
    pytest.importorskip("rouge_score", reason="the extra `metrics` is not installed")
    pair = ("the cat sat", "the cat ran")
    assert value("rouge1", pair) == pytest.approx(2 / 3)
    assert value("rouge2", pair) == pytest.approx(1 / 2)
    assert value("rougeL", pair) == pytest.approx(2 / 3)
    assert value("rouge1", ("jumping dogs", "jumped dog")) == 1


def test_meteor_by_hand() -> None:
    """Three words matched (one by its stem) in one piece: 1 - 0.5 (1/3)^3; in three pieces: 1 - 0.5."""
    pytest.importorskip("nltk", reason="the extra `metrics` is not installed")
    assert value("meteor-stem", ("the cats sat", "the cat sat")) == pytest.approx(1 - 0.5 / 27)
    assert value("meteor-stem", ("c b a", "a b c")) == pytest.approx(0.5)


def test_meteor_with_synonyms_says_what_it_needs() -> None:
    """Without WordNet the name meteor is refused, and the one that needs none is named."""
    pytest.importorskip("nltk", reason="the extra `metrics` is not installed")
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        with pytest.raises(InvalidInput, match=r"needs WordNet .* meteor-stem matches"):
            make_metric("meteor")


def test_the_best_reference_counts() -> None:
    """With two references ROUGE is that of the better one, and an empty one is none."""
    pytest.importorskip("rouge_score", reason="the extra `metrics` is not installed")
    sample = Sample(prompt="p", completion="a b", references=("", "x y", "a b"))
    assert measure(make_metric("rouge1"), [[sample]]).value == 1


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_a_sample_without_a_reference_is_an_error(name: str) -> None:
    """It says which metric and which prompt; it is no 0."""
    with pytest.raises(InvalidInput, match=f"metric {name} needs references, and the prompt 'why' has none"):
        measure(make_metric(name), [[Sample(prompt="why", completion="x")]])


def test_distinct_by_hand() -> None:
    """a b a b and a b c have 5 pairs of words, 3 different; without the first 2 of 2, without the second 2 of 3."""
    groups = [[Sample(prompt="", completion=text)] for text in ("a b A b", "a b c")]
    whole, without = Distinct(2).pooled(groups)
    assert whole == pytest.approx(3 / 5)
    assert without == pytest.approx([1, 2 / 3])
    assert Distinct(3).pooled([[Sample(prompt="", completion="a b")]])[0] == 0


def test_own_metrics_by_hand() -> None:
    """a b a b repeats one of three pairs; one word in two texts of four words is on the list of toxic words."""
    texts = [("a b a b", ""), ("you idiot , go", "")]
    assert value("repetition-2", texts[0]) == pytest.approx(1 / 3)
    assert value("repetition-4", ("a b", "")) == 0
    assert value("length", *texts) == 4
    assert value("toxic-words", *texts) == 0.5
    assert value("sentiment", ("This is wonderful!", "")) > 0.5
    assert value("rule:length:target=8", texts[0]) == -0.5


def test_perplexity_by_hand() -> None:
    """Tokens of probability 1/2, 1/2 and 1/8: (2^5)^(1/3), whichever completions they stand in."""
    samples = [
        Sample(prompt="", completion="", logprobs=[math.log(1 / 2)] * 2),
        Sample(prompt="", completion="", logprobs=[math.log(1 / 8)]),
    ]
    assert measure(make_metric("perplexity"), [samples]).value == pytest.approx(2 ** (5 / 3))
    assert measure(make_metric("perplexity"), [samples[:1], samples[1:]]).value == pytest.approx(2 ** (5 / 3))
    with pytest.raises(InvalidInput, match="needs a model"):
        measure(make_metric("perplexity"), [[Sample(prompt="", completion="x")]])


def test_sums_are_taken_for_many_resamples_at_once() -> None:
    """A metric's value of a table of sums is the value of each row."""
    metric = make_metric("bleu")
    assert isinstance(metric, AdditiveMetric)
    rows = metric.statistics(
        [Sample(prompt="", completion=c, references=("a b c d e",)) for c in ("a b c d x", "a b", "x")]
    )
    sums = np.stack([rows.sum(0), rows[0], rows[2]])
    assert metric.value(sums) == pytest.approx([float(metric.value(row)) for row in sums])


def test_a_name_that_is_not_known_is_told_with_those_that_are() -> None:
    """One line that lists the metrics."""
    with pytest.raises(InvalidInput, match="metric 'blue' is not known; there are bleu, chrf, distinct-n"):
        make_metric("blue")
    assert "rule:<rule>" in metric_names()


def test_the_rule_of_toxic_words(tmp_path: Path) -> None:
    """Minus the share of words on the list, whole words only; a list of one's own replaces it."""
    assert make_rule("toxic_words").score("", "You IDIOT! What a class.", {}) == pytest.approx(-1 / 5)
    own = tmp_path / "words.txt"
    own.write_text("class\n\n", encoding="utf-8")
    assert make_rule(f"toxic_words:file={own}").score("", "You IDIOT! What a class.", {}) == pytest.approx(
        -1 / 5
    )
    assert make_rule("toxic_words").digest != make_rule(f"toxic_words:file={own}").digest
    with pytest.raises(NotFound, match=r"toxic_words: none\.txt"):
        make_rule("toxic_words:file=none.txt")

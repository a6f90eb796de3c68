"""Metrics against references: BLEU, chrF, ROUGE, METEOR. The best reference counts where there are several."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from services.common.errors import InvalidInput
from services.common.metrics.base import Better, Floats, Mean, Need, Sample, package_for, references_of

REFERENCES: frozenset[Need] = frozenset({"references"})
_ORDERS = 4
_CHARACTERS = 6
_BETA = 2.0
_TOKEN = re.compile(r"\w+|[^\w\s]")


class Bleu:
    """Corpus BLEU, 0 to 100, as sacrebleu's corpus_score: tokeniser 13a, exponential smoothing. Papineni et al. 2002.

    Counts of n-grams are sacrebleu's; they are summed over completions before precisions are formed.
    """

    name = "bleu"
    better: Better = "higher"
    needs = REFERENCES

    def __init__(self) -> None:
        self._bleu: Any = package_for("bleu", "sacrebleu.metrics", "sacrebleu").BLEU(effective_order=True)

    def statistics(self, samples: Sequence[Sample]) -> Floats:
        """[samples, 10]: matches and n-grams of orders 1 to 4, length, reference length."""
        rows = []
        for sample in samples:
            found = self._bleu.sentence_score(sample.completion, list(references_of(self.name, sample)))
            rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
        return np.array(rows, np.float64)

    def value(self, sums: Floats) -> Floats:
        """exp(mean log precision) times the brevity penalty exp(1 - reference / length), where shorter."""
        matches, totals = sums[..., :_ORDERS], sums[..., _ORDERS : 2 * _ORDERS]
        length, reference = sums[..., -2], sums[..., -1]
        halved = np.cumsum(
            (matches == 0) & (totals > 0), axis=-1
        )  # NIST: the k-th order without a match counts 1/2^k
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(matches > 0, matches / totals, 1 / (2.0**halved * totals))
            mean = np.exp(np.log(precision).mean(-1))
            penalty = np.minimum(1.0, np.exp(1 - reference / length))
        usable = (matches.sum(-1) > 0) & (totals > 0).all(-1)
        return np.asarray(np.where(usable, 100 * mean * penalty, 0.0), np.float64)


class ChrF:
    """Corpus chrF2, 0 to 100, as sacrebleu's corpus_score: 1 to 6 characters, no white space. Popović 2015."""

    name = "chrf"
    better: Better = "higher"
    needs = REFERENCES

    def statistics(self, samples: Sequence[Sample]) -> Floats:
        """[samples, 18]: for each order n-grams of the completion, of the reference, and in both."""
        rows = []
        for sample in samples:
            ours = _character_grams(sample.completion)
            each = [_against(ours, text) for text in references_of(self.name, sample)]
            rows.append(max(each, key=lambda row: float(self.value(row))))
        return np.stack(rows)

    def value(self, sums: Floats) -> Floats:
        """F2 of the mean precision and recall over the orders that both sides have."""
        ours, theirs, both = (sums[..., start::3] for start in range(3))
        there = (ours > 0) & (theirs > 0)
        orders = np.maximum(there.sum(-1), 1)
        precision = np.where(there, both / np.maximum(ours, 1), 0.0).sum(-1) / orders
        recall = np.where(there, both / np.maximum(theirs, 1), 0.0).sum(-1) / orders
        below = np.maximum(_BETA**2 * precision + recall, 1e-16)
        return np.asarray(100 * (1 + _BETA**2) * precision * recall / below, np.float64)


def _character_grams(text: str) -> list[Counter[str]]:
    letters = "".join(text.split())
    return [
        Counter(letters[at : at + order] for at in range(len(letters) - order + 1))
        for order in range(1, _CHARACTERS + 1)
    ]


def _against(ours: Sequence[Counter[str]], reference: str) -> Floats:
    row: list[int] = []
    for mine, theirs in zip(ours, _character_grams(reference), strict=True):
        # An order that the reference is too short for is not held against the completion.
        row += [mine.total() if theirs else 0, theirs.total(), (mine & theirs).total()]
    return np.array(row, np.float64)


class Rouge(Mean):
    """Mean F1 of ROUGE-1, ROUGE-2 or ROUGE-L, 0 to 1, by rouge-score with its stemmer. Lin 2004."""

    needs = REFERENCES

    def __init__(self, variant: Literal["1", "2", "L"]) -> None:
        self.name = f"rouge{variant}"
        module = package_for(self.name, "rouge_score.rouge_scorer", "rouge-score")
        self._scorer: Any = module.RougeScorer([self.name], use_stemmer=True)

    def score(self, sample: Sample) -> float:
        """The F1 against the best reference."""
        references = list(references_of(self.name, sample))
        return float(self._scorer.score_multi(references, sample.completion)[self.name].fmeasure)


class Meteor(Mean):
    """Mean METEOR, 0 to 1, by nltk: alpha 0.9, beta 3, gamma 0.5, words in lower case. Banerjee and Lavie 2005.

    meteor-stem matches equal words and equal stems, and needs no data; meteor matches synonyms, too, and needs WordNet
    where nltk finds its data. The two are not comparable, so neither stands in for the other.
    """

    needs = REFERENCES

    def __init__(self, *, synonyms: bool) -> None:
        self.name = "meteor" if synonyms else "meteor-stem"
        self._meteor: Any = package_for(self.name, "nltk.translate.meteor_score", "nltk")
        self._stemmer: Any = package_for(self.name, "nltk.stem.porter", "nltk").PorterStemmer()
        self._wordnet: Any = _wordnet() if synonyms else _NoSynonyms()

    def score(self, sample: Sample) -> float:
        """Against the best reference."""
        words = _TOKEN.findall(sample.completion.lower())
        return max(
            float(
                self._meteor.single_meteor_score(
                    _TOKEN.findall(text.lower()), words, stemmer=self._stemmer, wordnet=self._wordnet
                )
            )
            for text in references_of(self.name, sample)
        )


class _NoSynonyms:
    """Stands where nltk asks WordNet: no word has a synonym."""

    def synsets(self, word: str) -> list[Any]:  # noqa: ARG002 - WordNet's signature
        """None."""
        return []


def _wordnet() -> Any:
    wordnet = package_for("meteor", "nltk.corpus", "nltk").wordnet
    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise InvalidInput(
            "metric meteor needs WordNet among nltk's data (python -m nltk.downloader wordnet); "
            "meteor-stem matches words and stems alone and needs none",
            {"metric": "meteor-stem"},
        ) from None
    return wordnet

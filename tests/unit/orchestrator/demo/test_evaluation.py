"""The figures of the evaluation against values worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from orchestrator.demo import evaluation
from services.common.errors import InvalidInput


def test_win_rate_counts_ties_half() -> None:
    """Two wins, one loss and one tie of four pairs are (2 + 0.5) / 4."""
    assert evaluation.win_rate([[1.0, 0.0], [0.3, 0.9]], [[0.0, 0.0], [0.4, 0.1]]) == 0.625


def test_win_rate_pairs_by_index_and_not_by_rank() -> None:
    """The same scores in another order are other pairs."""
    assert evaluation.win_rate([[1.0, 2.0, 3.0]], [[0.0, 1.0, 2.0]]) == 1.0
    assert evaluation.win_rate([[1.0, 2.0, 3.0]], [[2.0, 0.0, 1.0]]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("after", "before"),
    [([1.0], [0.0]), ([[1.0, 2.0]], [[1.0]]), (np.zeros((0, 4)), np.zeros((0, 4))), ([[math.nan]], [[0.0]])],
)
def test_scores_that_cannot_be_compared_are_refused(after: list[float], before: list[float]) -> None:
    """Wrong shapes, nothing at all, and NaN (a failed score) are errors, never a number."""
    with pytest.raises(InvalidInput):
        evaluation.win_rate(after, before)


def test_interval_of_certain_wins_has_no_width() -> None:
    """If every prompt was won, every resample was, too."""
    ones = np.ones((100, 4))
    assert evaluation.win_rate_interval(ones, 0 * ones) == (1.0, 1.0)


def test_interval_follows_the_binomial_of_prompts_not_of_completions() -> None:
    """60 of 100 prompts won outright: the bounds are the 2.5 % and 97.5 % points of Binomial(100, 0.6) / 100.

    Those points are 50 and 69 (cumulative 0.0271 and 0.9752). Counting the 400 completions as independent
    would give 0.5525 to 0.6475, which is what a bootstrap over completions would wrongly claim.
    """
    after = np.repeat((np.arange(100) < 60).astype(float)[:, None], 4, axis=1)
    before = 1 - after
    low, high = evaluation.win_rate_interval(after, before)
    assert low == pytest.approx(0.50, abs=0.011)
    assert high == pytest.approx(0.69, abs=0.011)
    assert evaluation.win_rate_low(after, before) == low


def test_interval_is_the_same_every_time_and_another_with_another_seed() -> None:
    """The bootstrap's seed enters from outside and decides everything."""
    scores = np.random.default_rng(5).normal(size=(2, 50, 3))
    first = evaluation.win_rate_interval(scores[0], scores[1], seed=1)
    assert first == evaluation.win_rate_interval(scores[0], scores[1], seed=1)
    assert first != evaluation.win_rate_interval(scores[0], scores[1], seed=2)


@pytest.mark.parametrize(
    ("completions", "n", "expected"),
    [
        (["a b a b"], 2, 2 / 3),  # ab, ba, ab
        (["a b", "a b"], 2, 1 / 2),  # one bigram, twice; none across the two texts
        (["a b", "b c"], 2, 1.0),
        (["a b c d"], 3, 1.0),
        (["a", "", "b"], 2, 0.0),  # too short for any bigram
        ([[1, 2, 1, 2], [2, 1]], 2, 2 / 4),  # 12, 21, 12, 21
        ([[7, 7, 7]], 1, 1 / 3),
    ],
)
def test_distinct_n(completions: list[str], n: int, expected: float) -> None:
    """Different n-grams over all n-grams, pooled, none spanning two completions."""
    assert evaluation.distinct_n(completions, n) == pytest.approx(expected)


def test_sequence_kl_sums_over_tokens_and_averages_over_completions() -> None:
    """Log-ratios 0.5 + 0.5 and -0.25 give sums 1 and -0.25, hence a mean of 0.375."""
    policy = [[-1.0, -0.5], [-2.25]]
    reference = [[-1.5, -1.0], [-2.0]]
    assert evaluation.sequence_kl(policy, reference) == pytest.approx(0.375)


def test_sequence_kl_keeps_its_digits_in_float32() -> None:
    """Sums are float64 even where the log-probs are float32."""
    policy = np.full(10_000, -0.1, dtype=np.float32)
    assert evaluation.sequence_kl([policy], [policy - np.float32(0.25)]) == pytest.approx(2500, rel=1e-6)


def test_sequence_kl_refuses_what_does_not_belong_together() -> None:
    """Another number of completions or of tokens is an error."""
    with pytest.raises(InvalidInput, match="do not pair up"):
        evaluation.sequence_kl([[0.0]], [])
    with pytest.raises(InvalidInput, match="completion 1"):
        evaluation.sequence_kl([[0.0], [0.0, 0.0]], [[0.0], [0.0]])


def test_length_statistics() -> None:
    """Lengths 0 to 10: mean and median 5, deciles 1 and 9."""
    assert evaluation.length_statistics(range(11)) == evaluation.LengthStatistics(5.0, 5.0, 1.0, 9.0, 10)


BEFORE = evaluation.Answers(
    texts=[["it is so", "it is so"], ["no", "well it was"]],
    token_ids=[[[1, 2, 3, 0], [1, 2, 3, 0]], [[4, 0], [5, 1, 6, 0, 0, 0]]],
    scores=[[0.0, 0.5], [-1.0, 0.5]],
)
AFTER = evaluation.Answers(
    texts=[["it is so", "what a day"], ["no thanks then", "it is so"]],
    token_ids=[[[1, 2, 3, 0], [7, 8, 9, 0]], [[4, 5, 6, 0], [1, 2, 0]]],
    scores=[[1.0, 0.5], [1.0, 0.25]],
)


def test_evaluate_puts_all_figures_together() -> None:
    """A tiny evaluation of two prompts and two completions, every figure worked out by hand."""
    zeros = [np.zeros(len(ids)) for row in AFTER.token_ids for ids in row]
    result = evaluation.evaluate(BEFORE, AFTER, [row + 0.5 for row in zeros], zeros)
    assert dataclasses.replace(result, win_rate_low=0, win_rate_high=1) == evaluation.Evaluation(
        prompts=2,
        comparisons=4,
        win_rate=0.625,  # win, tie, win, loss
        win_rate_low=0,
        win_rate_high=1,
        score_before=0.0,
        score_after=0.6875,
        distinct_before=4 / 6,  # it-is, is-so (twice each); well-it, it-was
        distinct_after=6 / 8,
        distinct_ratio=1.125,
        length_before=evaluation.LengthStatistics(4.0, 4.0, 2.6, 5.4, 6),
        length_after=evaluation.LengthStatistics(3.75, 4.0, 3.3, 4.0, 4),
        length_ratio=0.9375,
        sequence_kl=1.875,  # half a nat for each of 4 + 4 + 4 + 3 tokens, over 4
    )
    assert 0.5 <= result.win_rate_low <= 0.625 <= result.win_rate_high <= 0.75


def test_evaluate_refuses_sets_of_different_size() -> None:
    """Log-probs for fewer completions than were scored are an error."""
    with pytest.raises(InvalidInput, match="do not belong together"):
        evaluation.evaluate(BEFORE, AFTER, [np.zeros(4)], [np.zeros(4)])

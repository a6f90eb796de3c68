"""The figures of an evaluation, computed from arrays; refuses to know where scores and log-probs come from.

Definitions (the same for every run, never tuned to one):

    win_rate        share of pairs in which the answer after training scored higher; a tie is half
    win_rate_low    2.5 % point of a bootstrap over prompts (the completions of a prompt stay together)
    distinct_ratio  distinct-2 over all completions, after over before
    sequence_kl     mean over completions of the sum of log pi - log pi_ref at the sampled tokens, nats
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from services.common.errors import InvalidInput

Item = TypeVar("Item")

BOOTSTRAP_RESAMPLES = 10_000
BOOTSTRAP_SEED = 20_190_918
"""Fixed, so that the same scores always give the same interval, whatever the run's own seed."""


@dataclass(frozen=True)
class Answers:
    """One model's answers: `texts` and `token_ids` [prompts][completions], `scores` [prompts, completions].

    `token_ids` are the completion's own, without padding; `scores` are the annotator's, not the reward's.
    """

    texts: Sequence[Sequence[str]]
    token_ids: Sequence[Sequence[Sequence[int]]]
    scores: ArrayLike


@dataclass(frozen=True)
class LengthStatistics:
    """Lengths of completions, in tokens."""

    mean: float
    median: float
    p10: float
    p90: float
    longest: int


@dataclass(frozen=True)
class Evaluation:
    """Everything that the summary and the report say about the held-out prompts."""

    prompts: int
    comparisons: int
    win_rate: float
    win_rate_low: float
    win_rate_high: float
    score_before: float
    score_after: float
    distinct_before: float
    distinct_after: float
    distinct_ratio: float
    length_before: LengthStatistics
    length_after: LengthStatistics
    length_ratio: float
    sequence_kl: float


def _outcomes(after: ArrayLike, before: ArrayLike) -> NDArray[np.float64]:
    """[prompts, completions] float64: 1 where `after` is higher, 0.5 where equal, else 0."""
    new, old = np.asarray(after, dtype=np.float64), np.asarray(before, dtype=np.float64)
    if new.ndim != 2 or new.shape != old.shape or new.size == 0:
        raise InvalidInput(
            f"scores to compare must have one shape [prompts, completions], got {new.shape}, {old.shape}"
        )
    if not (np.isfinite(new).all() and np.isfinite(old).all()):
        raise InvalidInput("scores to compare must be finite: a failed score is an error, never a number")
    return np.asarray(np.where(new > old, 1.0, np.where(new == old, 0.5, 0.0)), dtype=np.float64)


def win_rate(after: ArrayLike, before: ArrayLike) -> float:
    """Share of pairs won by `after`; scores [prompts, completions], paired by index, ties half."""
    return float(_outcomes(after, before).mean())


def win_rate_interval(
    after: ArrayLike,
    before: ArrayLike,
    *,
    resamples: int = BOOTSTRAP_RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> tuple[float, float]:
    """2.5 % and 97.5 % points of the win rate under resampling of whole prompts with replacement.

    Answers to one prompt are not independent, so the prompt is what is drawn. Drawing how often each prompt
    comes from a multinomial is the same as drawing prompts one by one, and faster.
    """
    per_prompt = _outcomes(after, before).mean(axis=1)
    prompts = len(per_prompt)
    random = np.random.default_rng(seed)
    counts = random.multinomial(prompts, np.full(prompts, 1.0 / prompts), size=resamples)
    means = counts @ per_prompt / prompts
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def win_rate_low(
    after: ArrayLike,
    before: ArrayLike,
    *,
    resamples: int = BOOTSTRAP_RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> float:
    """The lower end of `win_rate_interval`."""
    return win_rate_interval(after, before, resamples=resamples, seed=seed)[0]


def distinct_n(completions: Sequence[str] | Sequence[Sequence[int]], n: int = 2) -> float:
    """Different n-grams over all n-grams, pooled over completions (arXiv 1510.03055); 0 if there are none.

    A text counts by its words (split at white space), a token list by its tokens; n-grams stay inside one.
    """
    if n < 1:
        raise InvalidInput(f"n of distinct-n must be at least 1, got {n}")
    seen: set[tuple[str | int, ...]] = set()
    total = 0
    for completion in completions:
        items: Sequence[str | int] = completion.split() if isinstance(completion, str) else completion
        grams = [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def sequence_kl(policy_logprobs: Sequence[ArrayLike], reference_logprobs: Sequence[ArrayLike]) -> float:
    """Mean over completions of sum(log pi - log pi_ref), nats.

    Each item holds one completion's log-probs [tokens], natural log, at the tokens that the policy sampled:
    an unbiased estimate of KL(policy || reference) over whole sequences, which few samples can make negative.
    """
    if len(policy_logprobs) != len(reference_logprobs) or not policy_logprobs:
        raise InvalidInput(
            f"log-probs of {len(policy_logprobs)} and {len(reference_logprobs)} completions do not pair up"
        )
    sums = []
    for index, (policy, reference) in enumerate(zip(policy_logprobs, reference_logprobs, strict=True)):
        mine, theirs = np.asarray(policy, dtype=np.float64), np.asarray(reference, dtype=np.float64)
        if mine.ndim != 1 or mine.shape != theirs.shape:
            raise InvalidInput(f"completion {index}: log-probs of shapes {mine.shape} and {theirs.shape}")
        sums.append(float((mine - theirs).sum()))
    return float(np.mean(sums))


def length_statistics(lengths: Sequence[int]) -> LengthStatistics:
    """Mean, median, 10 % and 90 % points and the longest of completion lengths in tokens."""
    if not lengths:
        raise InvalidInput("lengths of no completions have no statistics")
    values = np.asarray(lengths, dtype=np.float64)
    p10, median, p90 = np.quantile(values, [0.1, 0.5, 0.9])
    return LengthStatistics(float(values.mean()), float(median), float(p10), float(p90), int(values.max()))


def _flat(nested: Sequence[Sequence[Item]]) -> list[Item]:
    return [item for row in nested for item in row]


def _ratio(after: float, before: float) -> float:
    """After over before; 1 when both are 0 (nothing changed), and an error when only the divisor is."""
    if before == 0.0:
        if after == 0.0:
            return 1.0
        raise InvalidInput("the model before training gave only empty answers: a ratio to it means nothing")
    return after / before


def evaluate(
    before: Answers,
    after: Answers,
    policy_logprobs: Sequence[ArrayLike],
    reference_logprobs: Sequence[ArrayLike],
) -> Evaluation:
    """All figures of an evaluation.

    `before` are the reference's answers and `after` the policy's, to the same prompts in the same order.
    The log-probs are of the answers in `after`, prompt by prompt: [prompts * completions] arrays of [tokens].
    """
    low, high = win_rate_interval(after.scores, before.scores)
    new, old = np.asarray(after.scores, dtype=np.float64), np.asarray(before.scores, dtype=np.float64)
    tokens_before, tokens_after = _flat(before.token_ids), _flat(after.token_ids)
    if not len(tokens_before) == len(tokens_after) == len(policy_logprobs) == new.size:
        raise InvalidInput(
            f"{new.size} scores, {len(tokens_before)} and {len(tokens_after)} answers and "
            f"{len(policy_logprobs)} log-probs do not belong together"
        )
    distinct_before, distinct_after = distinct_n(_flat(before.texts)), distinct_n(_flat(after.texts))
    length_before = length_statistics([len(ids) for ids in tokens_before])
    length_after = length_statistics([len(ids) for ids in tokens_after])
    return Evaluation(
        prompts=new.shape[0],
        comparisons=new.size,
        win_rate=win_rate(new, old),
        win_rate_low=low,
        win_rate_high=high,
        score_before=float(old.mean()),
        score_after=float(new.mean()),
        distinct_before=distinct_before,
        distinct_after=distinct_after,
        distinct_ratio=_ratio(distinct_after, distinct_before),
        length_before=length_before,
        length_after=length_after,
        length_ratio=_ratio(length_after.mean, length_before.mean),
        sequence_kl=sequence_kl(policy_logprobs, reference_logprobs),
    )

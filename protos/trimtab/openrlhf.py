"""Rewards for OpenRLHF: a file with `from trimtab.openrlhf import reward_func`, named by --reward.remote_url.

(--remote_rm_url in versions before 0.10.) Owns OpenRLHF's contract of a reward function; imports nothing of
it but torch, which it runs on. The service is named by TRIMTAB_TARGET, TRIMTAB_MODEL, TRIMTAB_KEY_FILE and
TRIMTAB_CA_FILE, or by `make_reward_func`.

OpenRLHF asks for one row at a time from many threads: those share requests. It also swallows what a reward
function raises and goes on with None as the reward; so an error is logged here as one, before it is raised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trimtab.clients.reward import values_or_raise
from trimtab.clients.rows import row_columns, score_input
from trimtab.clients.scorers import shared_batcher, with_environment
from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2 as wire

_log = logging.getLogger("trimtab")


def answer_in(query: str, prompt: str, end_tokens: Sequence[str] = ()) -> str:
    """The answer in a query, which is prompt and answer as one text, without one of `end_tokens` at its end.

    The tokenizer may have put a token before the prompt. ValueError where the prompt is not in the query.
    """
    _, found, answer = query.partition(prompt)
    if not found:
        raise ValueError(f"the query does not contain its prompt; it begins with {query[:60]!r}")
    for token in end_tokens:
        if answer.endswith(token):
            return answer[: -len(token)]
    return answer


def make_reward_func(
    target: str = "", *, model: str = "", end_tokens: Sequence[str] = (), **options: Any
) -> Callable[..., dict[str, Any]]:
    """A reward function for OpenRLHF.

    end_tokens: special tokens that end an answer, such as "<|im_end|>"; OpenRLHF leaves them in the text.
    options: patience_seconds (300), timeout_seconds (300), and RewardClient's.
    """

    def reward_func(
        queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any
    ) -> dict[str, Any]:
        """`rewards` and `scores`: float tensors [rows]. `extra_logs`: the components of a composite, alike."""
        import torch

        scores = _scores(queries, prompts, labels, end_tokens, {"target": target, "model": model, **options})
        rewards = torch.tensor(values_or_raise(scores), dtype=torch.float32)
        logs = {
            name: torch.tensor([score.components[name] for score in scores], dtype=torch.float32)
            for name in sorted(scores[0].components)
        }
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}

    return reward_func


reward_func = make_reward_func()


def _scores(
    queries: Sequence[str],
    prompts: Sequence[str],
    labels: Sequence[Any],
    end_tokens: Sequence[str],
    settings: Mapping[str, Any],
) -> list[common.Score]:
    """One score with a value for each query; `label` travels as a column."""
    try:
        rows = [
            _row(query, prompt, label, end_tokens)
            for query, prompt, label in zip(queries, prompts, labels, strict=True)
        ]
        scores = shared_batcher(with_environment(settings)).score(rows)
        values_or_raise(scores)
    except Exception as error:
        _log.error("no reward for OpenRLHF, which may go on without one: %s", error)
        raise
    return scores


def _row(query: str, prompt: str, label: Any, end_tokens: Sequence[str]) -> wire.ScoreInput:
    return score_input(prompt, answer_in(query, prompt, end_tokens), row_columns({"label": label}))

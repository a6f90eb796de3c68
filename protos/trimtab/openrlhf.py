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

_log = logging.getLogger("trimtab")


def parted(
    query: str, prompt: str, end_tokens: Sequence[str] = (), *, rendered: bool = False
) -> tuple[str, str]:
    """A query, which is prompt and answer as one text, as both; the answer without one of `end_tokens` at its end.

    What the tokenizer put before the prompt stays with it. Where the prompt is not in the query, since it was cut or
    the tokenizer writes it differently, a rendered query is one text, which models read alike; else ValueError.
    """
    before, found, answer = query.partition(prompt) if prompt else ("", "", query)
    if prompt and not found:
        if not rendered:
            raise ValueError(f"the query does not contain its prompt; it begins with {query[:60]!r}")
        before, prompt, answer = "", "", query
    end = next((token for token in end_tokens if answer.endswith(token)), "")
    return before + prompt, answer.removesuffix(end)


def make_reward_func(
    target: str = "",
    *,
    model: str = "",
    end_tokens: Sequence[str] = (),
    rendered: bool = True,
    **options: Any,
) -> Callable[..., dict[str, Any]]:
    """A reward function for OpenRLHF.

    end_tokens: special tokens to take off an answer's end, such as "<|im_end|>", for rules that compare; OpenRLHF
    leaves them in the text, and a model that reads rendered text expects them.
    rendered: OpenRLHF put the policy's chat template around the prompt (--data.apply_chat_template), and the
    model is to read the text as it stands. False for plain prompts: the model's own template goes around them.
    options: patience_seconds (300), timeout_seconds (300), and RewardClient's.
    """

    def reward_func(
        queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any
    ) -> dict[str, Any]:
        """`rewards` and `scores`: float tensors [rows]. `extra_logs`: the components of a composite, alike."""
        import torch

        settings = {"target": target, "model": model, **options}
        scores = _scores(queries, prompts, labels, settings, end_tokens=end_tokens, rendered=rendered)
        rewards = torch.tensor(values_or_raise(scores), dtype=torch.float32)
        logs = {
            name: torch.tensor([score.components[name] for score in scores], dtype=torch.float32)
            for name in _everywhere(scores)
        }
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}

    return reward_func


reward_func = make_reward_func()


def _everywhere(scores: Sequence[common.Score]) -> list[str]:
    """Components that every score has: of a composite that may skip one, what is not there would read as 0."""
    return sorted(set.intersection(*(set(score.components) for score in scores))) if scores else []


def _scores(
    queries: Sequence[str],
    prompts: Sequence[str],
    labels: Sequence[Any],
    settings: Mapping[str, Any],
    *,
    end_tokens: Sequence[str] = (),
    rendered: bool = True,
) -> list[common.Score]:
    """One score with a value for each query; `label` travels as a column."""
    try:
        rows = [
            score_input(
                *parted(query, prompt, end_tokens, rendered=rendered),
                row_columns({"label": label}),
                rendered=rendered,
            )
            for query, prompt, label in zip(queries, prompts, labels, strict=True)
        ]
        scores = shared_batcher(with_environment(settings)).score(rows)
        values_or_raise(scores)
    except Exception as error:
        _log.error("no reward for OpenRLHF, which may go on without one: %s", error)
        raise
    return scores

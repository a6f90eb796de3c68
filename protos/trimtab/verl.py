"""Rewards for verl: `custom_reward_function.path=pkg://trimtab.verl`, name `compute_score_async`.

Owns verl's contracts of a reward function: one row (`compute_score`, `compute_score_async`), a whole batch
(`compute_score_batch`). Imports nothing of verl. The service, its model, key and certificates are named by
`reward_kwargs` or by TRIMTAB_TARGET, TRIMTAB_MODEL, TRIMTAB_KEY_FILE and TRIMTAB_CA_FILE.

verl hands over no prompt. It is looked for in `extra_info`, as text or messages, under "prompt" or
"question"; `prompt_key` names another place, and prompt_key="" says that the model needs none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.clients.access import AccessOptions
from trimtab.clients.reward import values_or_raise
from trimtab.clients.rows import row_columns, score_input
from trimtab.clients.scorers import shared_async_batcher, shared_batcher, with_environment
from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2 as wire

_PROMPT_KEYS = ("prompt", "question")
_left_out: set[str] = set()
_log = logging.getLogger("trimtab")
# A number, or with details=True a dictionary that verl logs.
Reward = float | dict[str, float]


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    target: str = "",
    model: str = "",
    prompt_key: str | None = None,
    details: bool = False,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Reward:
    """The score of one answer; calls of several threads share requests. Raises where there is none.

    data_source, ground_truth and extra_info travel as columns. details: a dictionary with `score` and the
    components of a composite. options: patience_seconds (300), timeout_seconds, and RewardClient's. Its key_file,
    ca_file and the others of AccessOptions may stand beside `target`, too; what else verl hands over is let pass.
    """
    rows = [_row(data_source, solution_str, ground_truth, extra_info, prompt_key)]
    scores = shared_batcher(_settings(target, model, options, more)).score(rows)
    return _rewards(scores, details)[0]


async def compute_score_async(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    target: str = "",
    model: str = "",
    prompt_key: str | None = None,
    details: bool = False,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Reward:
    """The same as a coroutine, for verl's reward loop: rows that wait at once share requests."""
    rows = [_row(data_source, solution_str, ground_truth, extra_info, prompt_key)]
    scores = await shared_async_batcher(_settings(target, model, options, more)).score(rows)
    return _rewards(scores, details)[0]


def compute_score_batch(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None] | None = None,
    *,
    target: str = "",
    model: str = "",
    prompt_key: str | None = None,
    details: bool = False,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> list[Reward]:
    """The scores of a whole batch, for verl's `batch` reward manager."""
    infos = [None] * len(solution_strs) if extra_infos is None else extra_infos
    rows = [
        _row(source, solution, truth, info, prompt_key)
        for source, solution, truth, info in zip(
            data_sources, solution_strs, ground_truths, infos, strict=True
        )
    ]
    return _rewards(shared_batcher(_settings(target, model, options, more)).score(rows), details)


def _settings(
    target: str, model: str, options: Mapping[str, Any] | None, more: Mapping[str, Any]
) -> dict[str, Any]:
    # Let pass with verl's own, a key file would be one that nobody reads, and the call would go out without it.
    access = {name: more[name] for name in AccessOptions.__annotations__ if name in more}
    return with_environment({"target": target, "model": model, **access, **(options or {})})


def _row(
    data_source: str,
    solution: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None,
    prompt_key: str | None,
) -> wire.ScoreInput:
    info = dict(extra_info or {})
    prompt = _prompt(info, prompt_key)
    columns = _sendable(info) | row_columns({"data_source": data_source, "ground_truth": ground_truth})
    return score_input(prompt, solution, columns)


def _sendable(info: Mapping[str, Any]) -> dict[str, str]:
    """Columns of extra_info as text, without what is none, such as an image, of which the log hears once."""
    columns: dict[str, str] = {}
    for name, value in info.items():
        try:
            columns |= row_columns({name: value})
        except (TypeError, ValueError) as error:
            if name not in _left_out:
                _left_out.add(name)
                _log.warning("extra_info's %s is not sent: %s", name, error)
    return columns


def _prompt(info: dict[str, Any], prompt_key: str | None) -> Any:
    """Takes the prompt out of extra_info. ValueError where it is not there: a score without it means nothing."""
    if prompt_key == "":
        return ""
    keys = _PROMPT_KEYS if prompt_key is None else (prompt_key,)
    for key in keys:
        if info.get(key) is not None:
            return info.pop(key)
    raise ValueError(
        f"extra_info has no prompt under {' or '.join(keys)}: add it to the data set, name its place with "
        'prompt_key, or give prompt_key="" for a model that needs none'
    )


def _rewards(scores: Sequence[common.Score], details: bool) -> list[Reward]:
    values = values_or_raise(scores)
    if not details:
        return [*values]
    return [{**score.components, "score": value} for score, value in zip(scores, values, strict=True)]

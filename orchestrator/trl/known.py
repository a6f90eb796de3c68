"""Owns which trainers and which of their fields there are: TRL 1.16's, and TRL 1.12's for PPO, the last to have it."""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any, Literal

from services.common.errors import InvalidInput

Trainer = Literal["grpo", "rloo", "ppo", "dpo", "sft", "reward"]
TRAINERS: tuple[Trainer, ...] = ("grpo", "rloo", "ppo", "dpo", "sft", "reward")
SCRIPT_FIELDS: Mapping[str, Any] = {"reward_funcs": None, "reward_model_name_or_path": None}
"""Of TRL's own scripts for GRPO and RLOO."""
_TELLING: Mapping[Trainer, tuple[str, ...]] = {
    "ppo": ("num_ppo_epochs", "kl_coef", "cliprange", "response_length"),
    "rloo": ("normalize_advantages", "reward_clip_range"),
    "grpo": ("scale_rewards", "importance_sampling_level", "use_bias_correction_kl", "num_iterations"),
    "reward": ("center_rewards_coefficient",),
    "sft": ("completion_only_loss", "assistant_only_loss", "packing", "dataset_text_field"),
    "dpo": ("precompute_ref_log_probs", "f_divergence_type", "discopop_tau"),
}


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    text = importlib.resources.files(__package__).joinpath("fields.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = json.loads(text)
    return table


def config_fields(trainer: Trainer) -> dict[str, Any]:
    """Fields of the trainer's config, with TRL's defaults."""
    return {**_table()["every"], **_table()[trainer]}


def all_fields(trainer: Trainer) -> dict[str, Any]:
    """The config's fields and those that TRL's scripts read beside them: model, data set, rewards."""
    beside = {**_table()["model"], **_table()["script"], **SCRIPT_FIELDS}
    return {**beside, **config_fields(trainer)}


def trainer_of(given: Mapping[str, Any]) -> Trainer:
    """Whose config it is, by fields that only one has. Raises InvalidInput where that cannot be told."""
    possible = [
        trainer
        for trainer in TRAINERS
        if any(name in given for name in _TELLING[trainer]) and not unknown(trainer, given)
    ]
    if len(possible) != 1:
        raise InvalidInput(f"which trainer's config is it? give --trainer, one of {', '.join(TRAINERS)}")
    return possible[0]


def unknown(trainer: Trainer, given: Mapping[str, Any]) -> list[str]:
    """Names that are no field, each with the nearest that is."""
    fields = all_fields(trainer)
    wrong = []
    for name in given:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            wrong.append(f"{name}: there is no such field" + (f" (meant: {near[0]}?)" if near else ""))
    return wrong

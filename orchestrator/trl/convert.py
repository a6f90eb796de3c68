"""From a config to a Draft: which converter, and that every field has its fate. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.trl.draft import Draft
from orchestrator.trl.known import Trainer
from orchestrator.trl.offline import convert_dpo, convert_reward, convert_sft
from orchestrator.trl.online import convert_group, convert_ppo
from orchestrator.trl.shared import Around

_CONVERTERS: Mapping[Trainer, Callable[[Draft, Around], None]] = {
    "grpo": convert_group,
    "rloo": convert_group,
    "ppo": convert_ppo,
    "dpo": convert_dpo,
    "sft": convert_sft,
    "reward": convert_reward,
}
JOBS: tuple[Trainer, ...] = ("sft", "reward")
"""They become a job's command, the others a run."""
WITH_REWARDS: tuple[Trainer, ...] = ("grpo", "rloo", "ppo")


def convert(trainer: Trainer, given: Mapping[str, Any], around: Around) -> Draft:
    """Raises ConfigError with everything that is refused, in one line."""
    draft = Draft(trainer, given)
    _CONVERTERS[trainer](draft, around)
    draft.settle()
    return draft

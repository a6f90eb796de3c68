"""Where a run's scores come from, as a run's file writes it, and the reward service's tables that follow from that.

folder               a reward model
rule:<rule>          a text rule, see services/common/rules
function:<function>  a Python function: entry point of group trimtab.rewards, or package.module:function
trl:<function>       the same, called as TRL calls its reward_funcs
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from services.common.spec.base import Spec

RULE_PREFIX = "rule:"
FUNCTION_PREFIX = "function:"
TRL_PREFIX = "trl:"
TRL_SECONDS = 600.0
"""TRL waits for a function without an end; a run must not."""


class RunReward(Spec):
    """One [[reward_sources]]: a source and its weight in the sum."""

    source: str = Field(min_length=1, max_length=1024, description="Folder, rule:…, function:… or trl:….")
    weight: float = 1.0


def source_table(source: str) -> dict[str, Any]:
    """The source's part of a [[models]] table of the reward service."""
    if source.startswith(RULE_PREFIX):
        return {"rule": source.removeprefix(RULE_PREFIX)}
    if source.startswith(FUNCTION_PREFIX):
        return {"function": {"name": source.removeprefix(FUNCTION_PREFIX)}}
    if source.startswith(TRL_PREFIX):
        name = source.removeprefix(TRL_PREFIX)
        return {"function": {"name": name, "convention": "trl", "timeout_seconds": TRL_SECONDS}}
    return {"path": source}


def reward_tables(name: str, reward_model: str, rewards: Sequence[RunReward]) -> list[dict[str, Any]]:
    """The [[models]] that score a stage under `name`: one source, or a composite and its parts, TRL's sum."""
    if not rewards:
        return [{"name": name, **source_table(reward_model)}] if reward_model else []
    parts = [f"{name}-{number}" for number in range(1, len(rewards) + 1)]
    components = [
        {"model": part, "weight": reward.weight} for part, reward in zip(parts, rewards, strict=True)
    ]
    return [
        *({"name": part, **source_table(reward.source)} for part, reward in zip(parts, rewards, strict=True)),
        {"name": name, "composite": {"components": components, "absent": "skip"}},
    ]

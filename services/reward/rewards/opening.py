"""From what a user wrote to a RewardSource: a folder, or rule:<rule>. Heavy imports only for models."""

from __future__ import annotations

from services.common.rules import make_rule
from services.reward.config import RewardConfig
from services.reward.rewards.base import RewardSource
from services.reward.rewards.rule import RuleReward

RULE_PREFIX = "rule:"


def open_source(location: str, config: RewardConfig, *, name: str) -> RewardSource:
    """The source at `location`. Takes seconds for a model; call it off the event loop.

    Raises NotFound or InvalidInput for what is not there or cannot be read.
    """
    if location.startswith(RULE_PREFIX):
        return RuleReward(make_rule(location.removeprefix(RULE_PREFIX)))
    from services.reward.rewards.model import open_model

    return open_model(
        location,
        dtype=config.dtype,
        device=config.device,
        threads=config.threads,
        token_budget=config.token_budget,
        name=name,
    )

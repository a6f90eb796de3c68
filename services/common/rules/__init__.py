"""Text rules without torch, scored by the reward service and by the built-in annotator alike."""

from services.common.rules.base import Rule
from services.common.rules.registry import make_rule, rule_names

__all__ = ["Rule", "make_rule", "rule_names"]

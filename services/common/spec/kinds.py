"""Which kinds of algorithm a run can train with: the union of their settings, and what is refused in one line."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from services.common.spec.algorithms import (
    A2cSpec,
    GrpoSpec,
    OtherSpec,
    PpoSpec,
    ReinforcePlusPlusSpec,
    RftSpec,
    RlooSpec,
)
from services.common.spec.library import TrpoSpec

NOT_IN_THE_LEARNER = ("nlpo", "ilql", "dpo")
"""Algorithms that services/learner/algorithms has, and benchmarks.randomwalks or one's own loop can use, but no run."""


def _kind(given: Any) -> str:
    """The kind of a table or a model; without one it is ppo."""
    return str(given.get("kind", "ppo") if isinstance(given, dict) else getattr(given, "kind", given))


AlgorithmSpec = Annotated[
    Annotated[PpoSpec, Tag("ppo")]
    | Annotated[GrpoSpec, Tag("grpo")]
    | Annotated[RlooSpec, Tag("rloo")]
    | Annotated[ReinforcePlusPlusSpec, Tag("reinforce++")]
    | Annotated[A2cSpec, Tag("a2c")]
    | Annotated[RftSpec, Tag("rft")]
    | Annotated[TrpoSpec, Tag("trpo")]
    | Annotated[OtherSpec, Tag("other")],
    Discriminator(_kind),
]
KINDS = ("ppo", "grpo", "rloo", "reinforce++", "a2c", "rft", "trpo", "other")


def check_kind(given: Any) -> Any:
    """Refuse, in one line, kinds that are not there or not in the learner."""
    kind = _kind(given) if isinstance(given, dict) else None
    if kind in NOT_IN_THE_LEARNER:
        raise ValueError(
            f"algorithm.kind = {kind} is in services/learner/algorithms, but a run cannot train with it yet: "
            f"expected {', '.join(KINDS)}"
        )
    if kind is not None and kind not in KINDS:
        raise ValueError(f"algorithm.kind = {kind}: expected {', '.join(KINDS)}")
    return given

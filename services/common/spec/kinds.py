"""Which kinds of algorithm a run can train with: the union of their settings, and what is refused in one line."""

from __future__ import annotations

from collections.abc import Sequence
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
from services.common.spec.library import DpoSpec, IlqlSpec, NlpoSpec, TrpoSpec


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
    | Annotated[NlpoSpec, Tag("nlpo")]
    | Annotated[OtherSpec, Tag("other")],
    Discriminator(_kind),
]
RunAlgorithmSpec = Annotated[
    Annotated[AlgorithmSpec, Tag("online")]
    | Annotated[DpoSpec, Tag("dpo")]
    | Annotated[IlqlSpec, Tag("ilql")],
    Discriminator(lambda given: kind if (kind := _kind(given)) in OFFLINE else "online"),
]
OFFLINE = ("dpo", "ilql")
"""They learn from a file alone, on this machine: a cluster would start pods for stages that they have no use for."""
KINDS = ("ppo", "grpo", "rloo", "reinforce++", "a2c", "rft", "trpo", "nlpo", "other")


def check_run_kind(given: Any) -> Any:
    """As check_kind, with the offline kinds."""
    return (
        given
        if isinstance(given, dict) and _kind(given) in OFFLINE
        else check_kind(given, (*KINDS, *OFFLINE))
    )


def check_kind(given: Any, kinds: Sequence[str] = KINDS) -> Any:
    """Refuse, in one line, kinds that are not there or not for a cluster."""
    kind = _kind(given) if isinstance(given, dict) else None
    if kind in OFFLINE:
        raise ValueError(
            f"algorithm.kind = {kind} learns from a file, without rollouts: trimtab train, on one machine"
        )
    if kind is not None and kind not in KINDS:
        raise ValueError(f"algorithm.kind = {kind}: expected {', '.join(kinds)}")
    return given

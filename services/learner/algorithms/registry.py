"""Which algorithm carries out which `algorithm.kind`; an algorithm of one's own is a line here (README)."""

from __future__ import annotations

from typing import Any

from services.common.errors import InvalidInput
from services.common.spec.algorithms import OnlineSpec, OtherSpec
from services.learner.algorithms.a2c import A2c
from services.learner.algorithms.base import Algorithm
from services.learner.algorithms.grpo import Grpo
from services.learner.algorithms.nlpo import Nlpo
from services.learner.algorithms.ppo import Ppo
from services.learner.algorithms.reinforce import ReinforcePlusPlus
from services.learner.algorithms.rft import Rft
from services.learner.algorithms.rloo import Rloo
from services.learner.algorithms.trpo import Trpo

ALGORITHMS: dict[str, type[Algorithm[Any]]] = {
    "ppo": Ppo,
    "grpo": Grpo,
    "rloo": Rloo,
    "reinforce++": ReinforcePlusPlus,
    "a2c": A2c,
    "rft": Rft,
    "trpo": Trpo,
    "nlpo": Nlpo,
}


def algorithm_of(spec: OnlineSpec, *, max_completion_length: int) -> Algorithm[Any]:
    """The algorithm of these settings. Raises InvalidInput for a name that is not in the registry."""
    name = spec.name if isinstance(spec, OtherSpec) else str(getattr(spec, "kind", ""))
    if name not in ALGORITHMS:
        raise InvalidInput(f"algorithm.name = {name}: expected {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name](spec, max_completion_length=max_completion_length)

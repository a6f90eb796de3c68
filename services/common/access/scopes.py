"""Which scope each method needs: the authorisation table. Knows methods by their names alone.

A key lists its scopes one by one; none implies another, `admin` neither.
"""

from __future__ import annotations

from typing import Literal, get_args

Scope = Literal["score", "generate", "logprobs", "weights", "status", "preference", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# A method's own line goes before its service's.
_TABLE: dict[str, Scope] = {
    "trimtab.reward.v1.RewardService": "score",
    "trimtab.policy.v1.PolicyService": "generate",
    "trimtab.reference.v1.ReferenceService": "logprobs",
    "trimtab.weights.v1.WeightService": "weights",
    "trimtab.learner.v1.LearnerService/GetRunStatus": "status",
    "trimtab.preference.v1.PreferenceService": "preference",
}
_REFLECTION = "grpc.reflection."


def scope_of(method: str) -> Scope | None:
    """The scope that "package.Service/Method" needs; None: any known caller may.

    Services named …AdminService need `admin`, and so does what nobody entered in the table.
    """
    service = method.partition("/")[0]
    if service.startswith(_REFLECTION):
        return None
    if service.endswith("AdminService"):
        return "admin"
    return _TABLE.get(method) or _TABLE.get(service) or "admin"

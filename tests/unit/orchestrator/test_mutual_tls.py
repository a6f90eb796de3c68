"""Who may call whom inside a run with mTLS, method by method, through the gate that the services use."""

from __future__ import annotations

import pytest

from orchestrator.mutual_tls import CALLERS, CERTIFICATES, common_name
from orchestrator.mutual_tls import callers as callers_of
from services.common.access.gate import Gate
from services.common.access.keys_file import KeysFile
from services.common.access.scopes import scope_of
from services.common.errors import Forbidden, Unauthenticated
from trimtab.learner.v1 import learner_pb2
from trimtab.policy.v1 import policy_pb2
from trimtab.preference.v1 import preference_pb2
from trimtab.reference.v1 import reference_pb2
from trimtab.reward.v1 import reward_pb2
from trimtab.weights.v1 import weights_pb2

SERVED = {
    "policy": ("PolicyService", "WeightService"),
    "reference": ("ReferenceService",),
    "reward": ("RewardService", "RewardAdminService"),
    "learner": ("LearnerService", "WeightService"),
    "preference": ("PreferenceService",),
}
ADMIN = {"Pause", "Resume", "Checkpoint", "Stop"}
MAY = {
    ("policy", "policy"): {"WeightService"},
    ("policy", "client"): {"PolicyService"},
    ("reference", "client"): {"ReferenceService"},
    ("reward", "client"): {"RewardService"},
    ("learner", "policy"): {"WeightService"},
    ("learner", "operator"): {"LearnerService"},
    ("learner", "client"): {"GetRunStatus"},
    ("preference", "client"): {"PreferenceService"},
}
FILES = (learner_pb2, policy_pb2, preference_pb2, reference_pb2, reward_pb2, weights_pb2)
METHODS = [
    (service.full_name, service.name, method.name)
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def gate_of(role: str) -> Gate:
    """As a service of this role opens it, from the file that it is given."""
    table = KeysFile.model_validate(callers_of(role, "run")).table()
    return Gate(lambda: table, certificates=True)


@pytest.mark.parametrize("who", [*CERTIFICATES, "preference"])
@pytest.mark.parametrize("role", CALLERS)
def test_method_by_method(role: str, who: str) -> None:
    """What the table says passes; everything else is refused, by name or as a stranger."""
    gate, allowed = gate_of(role), MAY.get((role, who), set())
    tried = [one for one in METHODS if one[1] in SERVED[role]]
    assert tried
    for full, service, method in tried:
        scope = scope_of(f"{full}/{method}")
        if service in allowed or method in allowed:
            assert gate.permit(None, common_name("run", who), scope).name == f"run-{who}"
        else:
            with pytest.raises((Forbidden, Unauthenticated)):
                gate.permit(None, common_name("run", who), scope)


def test_another_runs_certificate_is_a_strangers() -> None:
    """Even under the same authority: names have the run's prefix."""
    with pytest.raises(Unauthenticated, match="other-policy is not in the keys file"):
        gate_of("learner").permit(None, "other-policy", "weights")


def test_only_whoever_looks_after_a_run_administers_it() -> None:
    """No service of a run, and no client, may pause or stop it."""
    learner = gate_of("learner")
    for who in (*CERTIFICATES, "preference"):
        for method in ADMIN:
            scope = scope_of(f"trimtab.learner.v1.LearnerService/{method}")
            if who == "operator":
                learner.permit(None, f"run-{who}", scope)
            else:
                with pytest.raises((Forbidden, Unauthenticated)):
                    learner.permit(None, f"run-{who}", scope)

"""Numbers at suspend and resume."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.control.replicas import RESUME, Number, number_for
from orchestrator.cluster.kinds import ServiceRole

STATIC = ServiceRole(replicas=3)
EXTERNAL = ServiceRole.model_validate({"replicas": 3, "scaling": {"mode": "External"}})
AUTO = ServiceRole.model_validate({"replicas": 3, "scaling": {"mode": "Auto", "min": 2, "max": 9}})


def deployment(replicas: int | None, kept: int | None = None, generation: int = 1) -> dict[str, Any]:
    annotations = {} if kept is None else {RESUME: str(kept)}
    return {
        "metadata": {"annotations": annotations, "generation": generation},
        "spec": {} if replicas is None else {"replicas": replicas},
    }


@pytest.mark.parametrize("role", [STATIC, EXTERNAL, AUTO])
def test_rest_remembers_then_goes_to_zero(role: ServiceRole) -> None:
    """Whoever scaled it; and once it is at zero nothing is written any more."""
    going = number_for(deployment(5), role, rest=True)
    assert (going.replicas, going.remember) == (0, 5)
    resting = number_for(deployment(0, kept=5), role, rest=True)
    assert (resting.replicas, resting.remember) == (None, 5)


@pytest.mark.parametrize(("role", "replicas"), [(STATIC, 3), (EXTERNAL, 5), (AUTO, 5)])
def test_resume_gives_back_what_it_had(role: ServiceRole, replicas: int) -> None:
    """Static has its number in the spec."""
    back = number_for(deployment(0, kept=5), role, rest=False)
    assert (back.replicas, back.remember) == (replicas, None)


def test_static_is_held_and_the_others_are_left_alone() -> None:
    """The scaler that owns the number is another."""
    assert number_for(deployment(5), STATIC, rest=False).replicas == 3
    assert number_for(deployment(3), STATIC, rest=False).replicas is None
    assert number_for(deployment(5), EXTERNAL, rest=False) == Number(None, None, "")
    assert number_for(deployment(0), EXTERNAL, rest=False).replicas is None
    assert number_for(deployment(5), AUTO, rest=False).replicas is None


def test_auto_never_stays_below_its_least() -> None:
    """At zero nothing can be measured, so nothing would ever be decided."""
    assert number_for(deployment(0), AUTO, rest=False).replicas == 3
    assert number_for(deployment(1), AUTO, rest=False).replicas == 3


def test_made_while_suspended_it_begins_with_what_the_spec_says() -> None:
    """But a zero that somebody wrote is remembered as one."""
    assert number_for(deployment(0), EXTERNAL, rest=True).remember == 3
    assert number_for(deployment(0, generation=2), EXTERNAL, rest=True).remember == 0


def test_kubernetes_default_is_one() -> None:
    """Where a Deployment says nothing."""
    assert number_for(deployment(None), EXTERNAL, rest=True).remember == 1

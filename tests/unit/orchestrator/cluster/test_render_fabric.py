"""`spec.network.fabric` of a TrainingRun: learner and policies name the same fabric, and not beside TLS."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from orchestrator.cluster.render import RunState, render_run
from services.common.errors import InvalidInput
from services.learner.config import LearnerConfig
from services.policy.config import PolicyConfig
from tests.unit.orchestrator.cluster.objects import run


def tables(service: str, **fields: Any) -> dict[str, Any]:
    """What the service reads."""
    manifests = render_run(run(**fields), state=RunState(attempt=1))
    [found] = [
        m for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == f"helpful-{service}"
    ]
    read = tomllib.loads(found["data"][f"{service}.toml"])
    read["queue"]["url"] = "redis://queue"
    return read


def test_learner_and_policies_name_the_same_fabric() -> None:
    """Equal names are what pairs them; each run has its own."""
    policy = PolicyConfig.model_validate(tables("policy", network={"fabric": True}))
    learner = LearnerConfig.model_validate(tables("learner", network={"fabric": True}))
    assert policy.weights is not None
    assert policy.weights.fabric == learner.weights.fabric != ""


@pytest.mark.parametrize("service", ["policy", "learner"])
def test_without_the_field_weights_go_by_grpc_alone(service: str) -> None:
    """Nothing listens that was not asked for."""
    assert "fabric" not in tables(service).get("weights", {})


def test_a_fabric_is_refused_beside_tls() -> None:
    """What is asked to be encrypted is not sent in the clear; the API server says the same."""
    with pytest.raises(InvalidInput, match="weights in the clear"):
        run(tls={}, network={"fabric": True})


@pytest.mark.parametrize("model", [PolicyConfig, LearnerConfig])
def test_a_service_refuses_the_two_together(model: Any) -> None:
    """Also where no orchestrator looks."""
    service = "policy" if model is PolicyConfig else "learner"
    read = tables(service, network={"fabric": True})
    read["tls"] = {"certificate": "/a.crt", "private_key": "/a.key"}
    with pytest.raises(ValueError, match="weights in the clear"):
        model.model_validate(read)

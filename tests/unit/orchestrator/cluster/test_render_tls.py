"""`spec.tls` of a TrainingRun: every service has a certificate of its own, knows whom it calls and who may call."""

from __future__ import annotations

import base64
import json
import tomllib
from typing import Any

import pytest

from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.names import RunNames
from orchestrator.cluster.render import RunState, redis_secret, render_run
from orchestrator.queue_users import QueueUsers
from services.common.access.keys_file import KeysFile
from services.common.errors import InvalidInput
from services.learner.config import LearnerConfig
from services.policy.config import PolicyConfig
from services.reference.config import ReferenceConfig
from services.reward.config import RewardConfig
from tests.unit.orchestrator.cluster.objects import run

ATTEMPT = RunState(attempt=1)
MODELS: dict[str, Any] = {
    "policy": PolicyConfig,
    "reference": ReferenceConfig,
    "reward": RewardConfig,
    "learner": LearnerConfig,
}


def one(manifests: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    [found] = [item for item in manifests if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def files(spec: TrainingRun, service: str) -> dict[str, str]:
    data: dict[str, str] = one(render_run(spec, state=ATTEMPT), "ConfigMap", f"helpful-{service}")["data"]
    return data


def pod(spec: TrainingRun, service: str) -> dict[str, Any]:
    kind, name = {
        "learner": ("Job", "helpful-learner-1"),
        "redis": ("StatefulSet", "helpful-redis"),
    }.get(service, ("Deployment", f"helpful-{service}"))
    found: dict[str, Any] = one(render_run(spec, state=ATTEMPT), kind, name)["spec"]["template"]["spec"]
    return found


def mounted(spec: TrainingRun, service: str) -> dict[str, dict[str, Any]]:
    """Where a pod's Secrets are mounted, to the Secret."""
    found = pod(spec, service)
    secrets = {volume["name"]: volume["secret"] for volume in found["volumes"] if "secret" in volume}
    mounts = found["containers"][0]["volumeMounts"]
    return {mount["mountPath"]: secrets[mount["name"]] for mount in mounts if mount["name"] in secrets}


@pytest.mark.parametrize("service", MODELS)
def test_each_service_shows_its_own_certificate_and_asks_for_one(service: str) -> None:
    """Its configuration is what the service reads; its pod has its own Secret and no other service's."""
    tables = tomllib.loads(files(run(tls={}), service)[f"{service}.toml"])
    tables["queue"]["url"] = "rediss://queue"
    config = MODELS[service].model_validate(tables)
    assert config.tls is not None
    assert str(config.tls.certificate) == "/run/trimtab/tls/tls.crt"
    assert config.tls.client_ca is not None
    assert str(config.access.keys_file) == "/etc/trimtab/callers.toml"
    assert config.server.allow_unauthenticated is False
    assert config.queue is not None
    assert str(config.queue.ca_file) == "/run/trimtab/tls/ca.crt"
    own = mounted(run(tls={}), service)
    assert own["/run/trimtab/tls"] == {"secretName": f"helpful-tls-{service}", "defaultMode": 0o440}
    others = {secret["secretName"] for secret in own.values()} - {f"helpful-tls-{service}"}
    assert not [name for name in others if "tls" in name]


def test_a_policy_knows_its_learner_and_its_peers_by_name() -> None:
    """A pod's address says nothing of who answers there."""
    weights = tomllib.loads(files(run(tls={"secretPrefix": "team"}), "policy")["policy.toml"])["weights"]
    assert (weights["server_name"], weights["peer_name"]) == ("team-learner", "team-policy")
    assert weights["certificate_file"] == "/run/trimtab/tls/tls.crt"


def test_whose_certificate_may_call() -> None:
    """The learner: its policies for weights, the operator for status and checkpoints; nobody else administers."""
    learner = KeysFile.model_validate(tomllib.loads(files(run(tls={}), "learner")["callers.toml"]))
    assert {entry.name: set(entry.scopes) for entry in learner.certificates} == {
        "helpful-tls-policy": {"weights"},
        "helpful-tls-operator": {"status", "admin"},
        "helpful-tls-client": {"status"},
    }
    for service in ("policy", "reference", "reward"):
        told = KeysFile.model_validate(tomllib.loads(files(run(tls={}), service)["callers.toml"]))
        assert not told.keys
        assert not [entry for entry in told.certificates if "admin" in entry.scopes]


def test_the_runs_own_queue_server_speaks_tls_alone() -> None:
    """No plaintext port; services are told rediss://, in a Secret as before."""
    spec = run(tls={})
    settings = files(spec, "redis")["valkey.conf"].splitlines()
    assert {"port 0", "tls-port 6379", "tls-cert-file /run/trimtab/tls/tls.crt"} <= set(settings)
    assert mounted(spec, "redis")["/run/trimtab/tls"]["secretName"] == "helpful-tls-redis"
    names = RunNames.of(spec)
    users = QueueUsers.draw(names.run_uid, spec.spec.rollout.slip)
    data = redis_secret(spec, names, users)["data"]
    urls = {who: base64.b64decode(data[who]).decode() for who in ("policy", "learner", "operator")}
    assert all(
        url.startswith("rediss://") and "@helpful-redis.rlhf.svc:6379/0" in url for url in urls.values()
    )


def test_without_it_nothing_speaks_tls() -> None:
    """A run as before: no certificates, and NetworkPolicies say who may connect."""
    text = json.dumps(render_run(run(), state=ATTEMPT))
    assert "callers.toml" not in text
    assert "tls" not in text
    assert "port 6379" in text


def test_a_server_elsewhere_is_known_by_an_authority_that_is_named() -> None:
    """redis.caSecret reaches every service that reads the queue; beside the run's own server it is refused."""
    ca = {"name": "queue-ca", "key": "root.pem"}
    spec = run(redis={"usersSecret": "queue", "caSecret": ca})
    for service in MODELS:
        queue = tomllib.loads(files(spec, service)[f"{service}.toml"])["queue"]
        assert queue["ca_file"] == "/run/trimtab/queue-ca/ca.crt"
        assert mounted(spec, service)["/run/trimtab/queue-ca"] == {
            "secretName": "queue-ca",
            "items": [{"key": "root.pem", "path": "ca.crt"}],
        }
    with pytest.raises(InvalidInput, match="caSecret is for a server elsewhere"):
        run(redis={"caSecret": ca})

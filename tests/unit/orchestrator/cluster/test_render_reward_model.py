"""What a RewardModel stands for on Kubernetes."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from orchestrator.cluster.kinds import RewardModel, read_object
from orchestrator.cluster.render import render_reward_model
from services.reward.config import RewardConfig
from tests.unit.orchestrator.cluster.objects import FULL_MODEL, reward_model
from tests.unit.orchestrator.cluster.pods_rules import pod_specs, restricted_problems
from tests.unit.orchestrator.cluster.versions import VERSIONS, check

FULL = read_object(RewardModel, FULL_MODEL)
CASES = {"small": reward_model(), "full": FULL, "rule": reward_model(source={"rule": "length"})}


def one(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [item] = [m for m in manifests if m["kind"] == kind]
    return item


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_manifests_fit_kubernetes_schemas(case: str, version: str) -> None:
    """Each release accepts every manifest, unknown fields being errors; every pod is `restricted`."""
    manifests = render_reward_model(CASES[case])
    assert manifests == render_reward_model(CASES[case])
    for item in manifests:
        check(item, version)
    for _, pod in pod_specs(manifests):
        assert list(restricted_problems(pod)) == []


def test_the_service_reads_its_configuration() -> None:
    """The TOML file is the reward service's; keys and certificates lie where the pod mounts them."""
    manifests = render_reward_model(FULL)
    config = RewardConfig.model_validate(tomllib.loads(one(manifests, "ConfigMap")["data"]["reward.toml"]))
    assert [entry.name for entry in config.models] == ["hh", "shadow"]
    assert config.models[0].path == "/models/model"
    assert config.models[1].path == "/storage/next"
    assert (config.server.port, config.server.http_port) == (50053, 8053)
    assert config.server.allow_unauthenticated is False
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
    assert str(config.server.drain_file) == "/run/trimtab/pod/drain"
    assert [list(one) for one in pod["volumes"] if one["name"] == "marks"] == [["name", "downwardAPI"]]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert config.access.keys_file is not None
    assert config.tls is not None
    assert config.tls.client_ca is not None
    assert mounts[str(config.access.keys_file.parent)] == "keys"
    assert mounts[str(config.tls.certificate.parent)] == mounts[str(config.tls.client_ca.parent)] == "tls"
    # Nothing is mounted into a mount that is read-only: a container runtime cannot make the folder there.
    read_only = [m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if m.get("readOnly")]
    assert not [path for path in mounts for outer in read_only if path.startswith(f"{outer}/")]
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "keys"]
    assert volume["secret"]["defaultMode"] == 0o440


def test_models_are_fetched_before_the_service_starts() -> None:
    """An object store is read by rclone, a hub by hf; a rule and a folder of the image need nobody."""
    store = one(render_reward_model(FULL), "Deployment")["spec"]["template"]["spec"]["initContainers"]
    assert store[0]["command"] == [
        "rclone",
        "copy",
        ":gcs,env_auth=true,bucket_policy_only=true:bucket/hh",
        "/models/model",
    ]
    hub = one(render_reward_model(reward_model()), "Deployment")["spec"]["template"]["spec"]["initContainers"]
    assert hub[0]["command"] == [
        "hf",
        "download",
        "org/hh",
        "--local-dir",
        "/models/model",
        "--revision",
        "main",
    ]
    rule = one(render_reward_model(CASES["rule"]), "Deployment")["spec"]["template"]["spec"]
    assert "initContainers" not in rule


def test_replicas_only_at_creation() -> None:
    """What is applied to a Deployment that is there never names `replicas`."""
    assert one(render_reward_model(FULL), "Deployment")["spec"]["replicas"] == 3
    assert "replicas" not in one(render_reward_model(FULL, creating=False), "Deployment")["spec"]


def test_callers_are_not_cut_off() -> None:
    """A replica answers until its DNS record is gone, and a new one serves before an old one goes."""
    spec = one(render_reward_model(FULL), "Deployment")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}
    assert pod["terminationGracePeriodSeconds"] == 5 + 10 + 5

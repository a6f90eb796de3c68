"""Where a run's scores come from: a model that the run trains, a shared one, a function of the image."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from orchestrator.cluster.kinds import TrainingRun, read_object
from orchestrator.cluster.render import RunState, render_run
from services.common.errors import InvalidInput
from tests.unit.orchestrator.cluster.objects import FULL_RUN, changed, found, run


def test_a_shared_reward_model_is_reached_by_a_bridge() -> None:
    """A worker that calls it, with the pinned digest, its key, whom to trust and a certificate of its own."""
    manifests = render_run(read_object(TrainingRun, changed(FULL_RUN)))
    config = tomllib.loads(found(manifests, "ConfigMap", "helpful-reward-hh")["data"]["reward.toml"])
    [model] = config["models"]
    assert model["remote"]["url"] == "grpcs://hh.rlhf.svc:50053"
    template = found(manifests, "Deployment", "helpful-reward-hh")["spec"]["template"]
    assert template["metadata"]["annotations"]["trimtab.dev/digest"] == "blake3:0123456789abcdef"
    assert model["remote"]["digest"] == "blake3:0123456789abcdef"
    mounts = {mount["mountPath"] for mount in template["spec"]["containers"][0]["volumeMounts"]}
    files = ("key_file", "ca_file", "certificate_file", "private_key_file")
    assert {model["remote"][name].rpartition("/")[0] for name in files} <= mounts
    volumes = {one["name"]: one.get("secret") for one in template["spec"]["volumes"]}
    assert volumes["key"] == {"secretName": "hh-key", "items": [{"key": "key", "path": "key"}]}
    assert volumes["ca"] == {"secretName": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    assert volumes["client"] == {"secretName": "hh-client", "defaultMode": 0o440}


@pytest.mark.parametrize(
    ("fields", "remote"),
    [
        ({}, {"url": "grpc://hh.rlhf.svc:50053"}),
        ({"tls": {}}, {"url": "grpcs://hh.rlhf.svc:50053"}),
        (
            {"keySecret": {"name": "k", "key": "k"}, "allowPlaintext": True},
            {"url": "grpc://hh.rlhf.svc:50053", "key_file": "/run/trimtab/key/key", "allow_plaintext": True},
        ),
    ],
)
def test_how_a_bridge_speaks(fields: dict[str, Any], remote: dict[str, Any]) -> None:
    """Plaintext, TLS by gRPC's own authorities, a key where a mesh encrypts."""
    ref = {"name": "hh", **fields}
    manifests = render_run(run(rewards=[{"stage": "reward", "rewardModelRef": ref}], rewardModel=None))
    config = tomllib.loads(found(manifests, "ConfigMap", "helpful-reward")["data"]["reward.toml"])
    assert config["models"][0]["remote"] == remote | {"model": "hh"}


def test_a_key_does_not_travel_in_the_clear() -> None:
    """keySecret alone is refused before any pod would refuse it."""
    ref = {"name": "hh", "keySecret": {"name": "k", "key": "k"}}
    with pytest.raises(InvalidInput, match="keySecret without tls would send the key in the clear"):
        run(rewards=[{"stage": "reward", "rewardModelRef": ref}], rewardModel=None)


def test_a_reward_model_that_the_run_trains() -> None:
    """With a stage that trains the reward model and no other source, reward workers read what it wrote."""
    spec = run(rewardModel=None, stages={"rewardModel": {"data": "/storage/pairs.jsonl"}})
    config = found(render_run(spec), "ConfigMap", "helpful-reward")["data"]["reward.toml"]
    assert tomllib.loads(config)["models"][0]["path"] == "/storage/runs/helpful-0123abcd/reward-model"
    job = found(render_run(spec, state=RunState(stage="rewardModel")), "Job", "helpful-reward-model")
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--out") + 1] == "/storage/runs/helpful-0123abcd/reward-model"


def test_a_function_of_the_image_scores() -> None:
    """A reward stage may name a Python function; its pods read nothing of the storage for it."""
    function = "services.common.tasks.randomwalks:score"
    manifests = render_run(run(rewardModel=None, rewards=[{"stage": "reward", "function": function}]))
    tables = tomllib.loads(found(manifests, "ConfigMap", "helpful-reward")["data"]["reward.toml"])
    assert tables["models"] == [{"name": "reward", "function": {"name": function}}]
    mounted = found(manifests, "Deployment", "helpful-reward")["spec"]["template"]["spec"]["volumes"]
    assert "storage" not in [volume["name"] for volume in mounted]

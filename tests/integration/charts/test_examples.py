"""Each file of deploy/examples is valid, renders, and says in its words what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster.documents import Object, read_objects
from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.names import RunNames
from services.common.stages.entry import RunKeys
from tests.integration.charts.examples import (
    EXAMPLES,
    FOLDERS,
    OBJECTS,
    OTHERS,
    OURS,
    documents,
    manifests_of,
    values_of,
)
from tests.integration.charts.rendering import HELMS, Manifest, check, named, of_kind, render
from tests.unit.orchestrator.cluster.pods_rules import pod_specs, restricted_problems
from tests.unit.orchestrator.cluster.versions import VERSIONS

WANTED = {"gke", "eks-karpenter", "aks", "bare-metal", "one-gpu", "keda", "shared-reward-model", "70b"}


def named_well(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def test_every_kind_of_cluster_has_its_example() -> None:
    """Each folder has values and a run, and a line in the README."""
    assert set(FOLDERS) == WANTED
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for folder in FOLDERS:
        assert (EXAMPLES / folder / "run.yaml") in OURS
        assert f"({folder})" in readme


@pytest.mark.parametrize("major", HELMS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_chart_takes_the_values(folder: str, major: str) -> None:
    """What it renders with them, the newest Kubernetes takes."""
    for manifest in render(values_of(folder), major=major):
        check(manifest, VERSIONS[-1])


@pytest.mark.parametrize("path", OURS, ids=named_well)
def test_the_operator_takes_the_objects(path: Path) -> None:
    """Each reads as the operator reads it."""
    assert read_objects(path)


@pytest.mark.parametrize("item", OBJECTS, ids=lambda item: f"{item.metadata.namespace}/{item.metadata.name}")
def test_what_objects_stand_for_is_valid_and_restricted(item: Object) -> None:
    """Oldest and newest Kubernetes take every manifest, Pod Security `restricted` every pod."""
    made = manifests_of(item)
    for kube in (VERSIONS[0], VERSIONS[-1]):
        for manifest in made:
            if not manifest["apiVersion"].startswith("kueue"):
                check(manifest, kube)
    for name, pod in pod_specs(made):
        assert list(restricted_problems(pod)) == [], name


@pytest.mark.parametrize("path", OTHERS, ids=named_well)
def test_kubernetes_takes_the_other_objects(path: Path) -> None:
    """Volumes, accounts, autoscalers; of other projects' kinds, that they are whole."""
    for document in documents(path):
        check(document, VERSIONS[-1])


@pytest.mark.parametrize("folder", FOLDERS)
def test_runs_are_where_the_operator_looks(folder: str) -> None:
    """Every object of the example lies in a namespace of its values."""
    namespaces = values_of(folder)["operator"]["namespaces"]
    for path in sorted((EXAMPLES / folder).glob("*.yaml")):
        if path in OURS:
            assert {item.metadata.namespace for item in read_objects(path)} <= set(namespaces)


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_must_be_there_first_is_said(folder: str) -> None:
    """The chart makes no namespace, so the README names each; images come from a registry, so the values name one."""
    values, readme = values_of(folder), (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert not of_kind(render(values), "Namespace")
    assert all(f"`{namespace}`" in readme for namespace in values["operator"]["namespaces"])
    assert values["images"]["registry"].startswith("registry.example.com")


@pytest.mark.parametrize("folder", FOLDERS)
def test_runs_name_accounts_and_volumes_that_the_example_brings(folder: str) -> None:
    """A service account that a run names is made beside it, in its namespace."""
    brought = {
        (document["kind"], document["metadata"].get("namespace"), document["metadata"]["name"])
        for path in OTHERS
        if path.parent.name == folder
        for document in documents(path)
    }
    for path in OURS:
        if path.parent.name != folder:
            continue
        for item in read_objects(path):
            account = item.spec.service_account_name
            assert account is None or ("ServiceAccount", item.metadata.namespace, account) in brought


def test_queueing_has_its_rights() -> None:
    """Where a run waits for Kueue, the operator may make Workloads."""
    for path in OURS:
        for item in read_objects(path):
            if isinstance(item, TrainingRun) and item.spec.queueing is not None:
                rights = named(
                    render(values_of(path.parent.name)), "Role", "trimtab-operator", item.metadata.namespace
                )
                assert "kueue.x-k8s.io" in str(rights), path
                assert values_of(path.parent.name)["operator"]["kueue"]["flavors"], path


def test_keda_measures_the_stream_of_the_run() -> None:
    """Its trigger names the run's own stream, without a consumer group, on the values' server, with its Secret."""
    [run] = [item for item in read_objects(EXAMPLES / "keda" / "run.yaml") if isinstance(item, TrainingRun)]
    authentication, scaled = documents(EXAMPLES / "keda" / "scaled-object.yaml")
    [trigger] = scaled["spec"]["triggers"]
    names = RunNames(run.metadata.name, run.metadata.namespace, uid="01234567-89ab")
    assert trigger["metadata"]["stream"] == RunKeys(names.run_uid).stage("reward")
    assert "consumerGroup" not in trigger["metadata"]
    assert trigger["type"] == "redis-streams"
    rendered = render(values_of("keda"))
    service = named(rendered, "Service", "trimtab-valkey")
    [port] = service["spec"]["ports"]
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert trigger["metadata"]["address"] == f"{host}:{port['port']}"
    reference = authentication["spec"]["secretTargetRef"][0]
    secret = _secret_of(rendered, run.metadata.namespace)
    assert reference["name"] == secret["metadata"]["name"] and reference["key"] in secret["data"]
    assert run.spec.redis.url_secret is not None
    assert run.spec.redis.url_secret.name == secret["metadata"]["name"]


def test_what_scales_is_left_to_its_scaler() -> None:
    """A Deployment's scaler needs mode External; one of a RewardModel's own `replicas` needs Static, which holds it."""
    [run] = read_objects(EXAMPLES / "keda" / "run.yaml")
    scaled = documents(EXAMPLES / "keda" / "scaled-object.yaml")[1]
    assert isinstance(run, TrainingRun)
    assert run.spec.roles.reward.scaling.mode == "External"
    assert scaled["spec"]["scaleTargetRef"]["name"] in {
        item["metadata"]["name"] for item in of_kind(manifests_of(run), "Deployment")
    }
    [model] = read_objects(EXAMPLES / "shared-reward-model" / "reward-model.yaml")
    [hpa] = documents(EXAMPLES / "shared-reward-model" / "hpa.yaml")
    assert not isinstance(model, TrainingRun)
    assert model.spec.scaling.mode == "Static"
    assert "replicas" not in documents(EXAMPLES / "shared-reward-model" / "reward-model.yaml")[0]["spec"]
    target = hpa["spec"]["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"], target["name"]) == (
        model.api_version,
        model.kind,
        model.metadata.name,
    )


def test_the_large_run_fits_its_gpus() -> None:
    """70.6e9 parameters in bfloat16 fit one GPU of 180 GB; the learner's 20 bytes each fit a third of all of its."""
    [run] = read_objects(EXAMPLES / "70b" / "run.yaml")
    assert isinstance(run, TrainingRun)
    parameters, gpu = 70.6e9, 180e9
    assert 2 * parameters < gpu
    learner = run.spec.roles.learner
    assert learner.replicas > 1
    assert 20 * parameters / (learner.replicas * learner.nproc_per_node) < gpu / 3


def _secret_of(manifests: list[Manifest], namespace: str) -> Manifest:
    [secret] = [item for item in of_kind(manifests, "Secret") if item["metadata"]["namespace"] == namespace]
    return secret

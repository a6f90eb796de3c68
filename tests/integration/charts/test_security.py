"""What must hold of every pod, right and secret that the chart makes, whatever its values."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.charts.matrix import EVERYTHING, MATRIX
from tests.integration.charts.rendering import Manifest, named, of_kind, render
from tests.unit.orchestrator.cluster.pods_rules import restricted_problems
from tests.unit.orchestrator.cluster.reach import fits

WRITTEN = {"/tmp", "/data", "/run/valkey"}  # noqa: S108 folders of pods
"""Folders that programs of this chart write to."""


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and {metadata, spec} of everything that is or makes pods, helm's test included."""
    for item in manifests:
        if item["kind"] == "Pod":
            yield item["metadata"]["name"], item
        elif "template" in item.get("spec", {}):
            yield item["metadata"]["name"], item["spec"]["template"]


@pytest.mark.parametrize("name", MATRIX)
def test_every_pod_is_restricted(name: str) -> None:
    """Pod Security `restricted` lets every pod in, and every root is read-only."""
    for pod_name, pod in pods(render(MATRIX[name])):
        assert list(restricted_problems(pod["spec"])) == [], pod_name
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("name", MATRIX)
def test_what_is_written_lies_on_a_volume(name: str) -> None:
    """A mount that is not read-only is a folder that the program writes, on a volume of the pod's own or a claim."""
    for pod_name, pod in pods(render(MATRIX[name])):
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
        for container in pod["spec"]["containers"]:
            for mount in container.get("volumeMounts", ()):
                own = "emptyDir" in volumes.get(mount["name"], {"emptyDir": {}})
                assert mount.get("readOnly", False) != own, (pod_name, mount)
                assert not own or mount["mountPath"] in WRITTEN, (pod_name, mount)


@pytest.mark.parametrize("name", MATRIX)
def test_memory_is_bounded_and_temporary_folders_too(name: str) -> None:
    """Each container has requests and a limit of memory; each emptyDir a size."""
    for pod_name, pod in pods(render(MATRIX[name])):
        for container in pod["spec"]["containers"]:
            assert container["resources"]["limits"]["memory"], pod_name
            assert container["resources"]["requests"]["cpu"], pod_name
        for volume in pod["spec"].get("volumes", ()):
            assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"], pod_name


@pytest.mark.parametrize("name", MATRIX)
def test_only_the_operator_may_speak_to_the_api_server(name: str) -> None:
    """No other pod has a token, nor does any service account hand one out by itself."""
    manifests = render(MATRIX[name])
    with_token = [
        pod_name for pod_name, pod in pods(manifests) if pod["spec"]["automountServiceAccountToken"]
    ]
    assert all(pod_name.endswith("-operator") for pod_name in with_token)
    assert len(with_token) == 1
    for account in of_kind(manifests, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", MATRIX)
def test_every_workload_has_a_budget_of_its_own(name: str) -> None:
    """A PodDisruptionBudget selects its pods and no others, and lets one go at a time."""
    manifests = render(MATRIX[name])
    budgets = of_kind(manifests, "PodDisruptionBudget")
    for workload in of_kind(manifests, "Deployment", "StatefulSet"):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        [budget] = [one for one in budgets if fits(one["spec"]["selector"], labels)]
        assert budget["spec"]["maxUnavailable"] == 1
    assert len(budgets) == len(of_kind(manifests, "Deployment", "StatefulSet"))


@pytest.mark.parametrize("name", [name for name in MATRIX if name != "no policies"])
def test_every_pod_is_shut_first_and_opened_by_a_policy_of_its_own(name: str) -> None:
    """Two policies at least select each pod: the one that shuts both directions, and its own."""
    manifests = render(MATRIX[name])
    policies = of_kind(manifests, "NetworkPolicy")
    for pod_name, pod in pods(manifests):
        labels = pod["metadata"]["labels"]
        about = [one for one in policies if fits(one["spec"]["podSelector"], labels)]
        shut = [one for one in about if not one["spec"].get("ingress") and not one["spec"].get("egress")]
        assert [one["spec"]["policyTypes"] for one in shut] == [["Ingress", "Egress"]], pod_name
        assert any(
            one["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/name")
            == labels["app.kubernetes.io/name"]
            for one in about
        ), pod_name


def test_no_policy_of_the_chart_selects_a_run() -> None:
    """Not even where the release, or a run, is called like the other."""
    run = {
        "app.kubernetes.io/instance": "trimtab",
        "app.kubernetes.io/part-of": "trimtab",
        "trimtab.dev/run": "trimtab",
    }
    for policy in of_kind(render(EVERYTHING), "NetworkPolicy"):
        assert policy["spec"]["podSelector"], "an empty selector would be the whole namespace"
        assert not fits(policy["spec"]["podSelector"], run)


@pytest.mark.parametrize("name", MATRIX)
def test_no_right_is_a_wildcard(name: str) -> None:
    """Every rule names its groups, resources and verbs; nobody may grant rights or act as another."""
    for role in of_kind(render(MATRIX[name]), "Role", "ClusterRole"):
        for rule in role["rules"]:
            words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "*" not in "".join(words)
            assert not {"bind", "escalate", "impersonate"} & set(rule["verbs"])
            assert "rbac.authorization.k8s.io" not in rule["apiGroups"]


@pytest.mark.parametrize("name", MATRIX)
def test_secrets_are_never_listed(name: str) -> None:
    """Whoever may list or watch Secrets reads them all."""
    for role in of_kind(render(MATRIX[name]), "Role", "ClusterRole"):
        for rule in role["rules"]:
            assert "secrets" not in rule["resources"] or not {"list", "watch"} & set(rule["verbs"])


@pytest.mark.parametrize("name", MATRIX)
def test_rights_of_the_cluster_only_where_asked_for(name: str) -> None:
    """By default the operator is bound in namespaces alone."""
    bindings = of_kind(render(MATRIX[name]), "ClusterRoleBinding")
    assert bool(bindings) == (name in ("all namespaces", "flavors"))


def test_bindings_name_roles_and_accounts_that_there_are() -> None:
    """Each binding's role is rendered beside it, and its subject is the account of the operator's pods."""
    manifests = render(EVERYTHING)
    account = named(manifests, "Deployment", "rlhf-operator")["spec"]["template"]["spec"][
        "serviceAccountName"
    ]
    for binding in of_kind(manifests, "RoleBinding"):
        space = binding["metadata"]["namespace"]
        roles = [
            role["metadata"]["name"]
            for role in of_kind(manifests, "Role")
            if role["metadata"]["namespace"] == space
        ]
        assert binding["roleRef"]["name"] in roles
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account, "namespace": "trimtab-system"}
        ]


@pytest.mark.parametrize("name", MATRIX)
def test_no_secret_stands_where_everybody_reads(name: str) -> None:
    """Passwords and URLs with one are in Secrets, not in ConfigMaps, variables, arguments or annotations."""
    manifests = render(MATRIX[name])
    secrets = {
        base64.b64decode(value).decode()
        for item in of_kind(manifests, "Secret")
        for value in item["data"].values()
    }
    readable = [item for item in manifests if item["kind"] != "Secret"]
    for secret in secrets:
        assert secret not in str(readable)
    for item in of_kind(manifests, "ConfigMap"):
        assert "password" not in " ".join(
            str(value) for key, value in item["data"].items() if key.endswith("toml")
        )


@pytest.mark.parametrize("level", ["viewer", "editor", "admin"])
def test_people_get_rights_by_the_clusters_own_roles(level: str) -> None:
    """Viewer, editor and admin of each kind are taken in by view, edit and admin; a viewer changes nothing."""
    aggregated = {"viewer": "view", "editor": "edit", "admin": "admin"}[level]
    for kind in ("trainingrun", "rewardmodel"):
        role = named(render(), "ClusterRole", f"trimtab-trimtab-system-{kind}-{level}")
        assert role["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{aggregated}"] == "true"
        verbs = {verb for rule in role["rules"] for verb in rule["verbs"]}
        assert (verbs <= {"get", "list", "watch"}) == (level == "viewer")
        about_status = [rule for rule in role["rules"] if rule["resources"] == [f"{kind}s/status"]]
        assert ("patch" in about_status[0]["verbs"]) == (level == "admin"), "status is the operator's to tell"

"""The chart renders under Helm 3 and 4, and every release of Kubernetes takes what comes out."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import yaml

from orchestrator.cluster.operator.config import OperatorConfig
from orchestrator.cluster.render.options import IMAGES
from services.preference.config import PreferenceConfig
from tests.integration.charts.matrix import EVERYTHING, MATRIX
from tests.integration.charts.rendering import (
    CHART,
    CHARTS,
    HELMS,
    Values,
    check,
    helm,
    named,
    of_kind,
    refused,
    render,
)
from tests.unit.orchestrator.cluster.versions import VERSIONS


@pytest.mark.parametrize("major", HELMS)
@pytest.mark.parametrize("chart", ["trimtab", "trimtab-crds"])
def test_lint_finds_nothing(chart: str, major: str) -> None:
    """`helm lint --strict` has nothing to say of either chart."""
    ran = helm("lint", "--strict", "--quiet", str(CHARTS / chart), major=major)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", MATRIX)
def test_kubernetes_takes_what_is_rendered(name: str) -> None:
    """Each set of values gives manifests that fit the schemas of the oldest and the newest release, strictly."""
    for kube in (VERSIONS[0], VERSIONS[-1]):
        for manifest in render(MATRIX[name], kube=kube):
            check(manifest, kube)


@pytest.mark.parametrize("kube", VERSIONS)
def test_every_release_takes_everything(kube: str) -> None:
    """With all switches on, every release between takes it too."""
    for manifest in render(EVERYTHING, kube=kube):
        check(manifest, kube)


def _without_passwords(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A password is drawn anew at each rendering without a cluster."""
    return [{**item, "data": {}} if item["kind"] == "Secret" else item for item in manifests]


@pytest.mark.parametrize("name", MATRIX)
def test_both_helms_render_the_same(name: str) -> None:
    """Helm 3 and 4 give the same objects, in whatever order."""
    by_helm = [
        sorted(
            _without_passwords(render(MATRIX[name], major=major)),
            key=lambda item: (item["kind"], str(item["metadata"])),
        )
        for major in HELMS
    ]
    assert by_helm[0] == by_helm[1]


@pytest.mark.parametrize("name", MATRIX)
def test_nothing_is_made_twice_or_nowhere(name: str) -> None:
    """No two objects share kind, namespace and name, and all say which namespace they are in, if any has them."""
    everything = render(MATRIX[name])
    seen = [
        (item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in everything
    ]
    assert len(set(seen)) == len(seen)
    for kind, namespace, _ in seen:
        assert (namespace is None) == kind.startswith("Cluster")


def test_older_kubernetes_is_refused() -> None:
    """Below 1.32 helm says that the chart is not for it."""
    ran = helm("template", "trimtab", str(CHARTS / "trimtab"), "--kube-version", "1.31.0")
    assert ran.returncode != 0
    assert "1.32" in ran.stderr


def test_images_of_runs_are_the_operators_own_defaults() -> None:
    """Without values, runs get the images that the operator would take by itself."""
    images = _toml({})["render"]["images"]
    assert images == dict(IMAGES)


def test_a_registry_goes_before_our_images_alone() -> None:
    """What has a tag or a digest of its own is taken as it stands."""
    values = {
        "images": {"registry": "r.example.com:5000/x", "tag": "9", "learner": "other@sha256:" + "0" * 64}
    }
    images = _toml(values)["render"]["images"]
    assert images["policy"] == "r.example.com:5000/x/trimtab-policy:9"
    assert images["learner"] == "other@sha256:" + "0" * 64
    assert images["redis"] == "valkey/valkey:9.0"


@pytest.mark.parametrize("name", MATRIX)
def test_runs_know_the_operator_by_labels_that_it_has(name: str) -> None:
    """NetworkPolicies of runs let the operator in by labels that its pods have, and no others."""
    manifests = render(MATRIX[name])
    wanted = _toml(MATRIX[name])["render"]["operator_labels"].items()
    for workload in of_kind(manifests, "Deployment", "StatefulSet"):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        is_operator = workload["metadata"]["name"].endswith("-operator")
        assert (wanted <= labels.items()) == is_operator


@pytest.mark.parametrize("name", MATRIX)
def test_the_operator_takes_its_configuration(name: str) -> None:
    """Its TOML is one that the operator validates, on the ports, with the Lease and the namespaces of the manifests."""
    values, manifests = MATRIX[name], render(MATRIX[name])
    stem = values.get("fullnameOverride", "trimtab")
    config = OperatorConfig.model_validate(_toml(values))
    ports = {
        port["name"]: port["containerPort"] for port in _container(manifests, f"{stem}-operator")["ports"]
    }
    assert ports == {"metrics": config.metrics_port, "health": config.health_port}
    assert (config.lease.name, config.home()) == (f"{stem}-operator", "trimtab-system")
    bound = {
        item["metadata"]["namespace"]
        for item in of_kind(manifests, "Role")
        if item["metadata"]["name"] == f"{stem}-operator"
    }
    assert set(config.namespaces) == bound or name == "no rights"
    options = config.render.options(config.home())
    assert options.monitoring_namespace == (
        values.get("monitoring", {}).get("namespace", "monitoring") or None
    )
    assert options.operator_namespace == "trimtab-system"
    pod = named(manifests, "Deployment", f"{stem}-operator")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > config.requests_seconds


@pytest.mark.parametrize("name", [name for name, values in MATRIX.items() if "preference" in values])
def test_the_preference_service_takes_its_configuration(name: str) -> None:
    """Its TOML is one that the service validates; it is open only where neither keys nor certificates guard it."""
    manifests, stem = render(MATRIX[name]), MATRIX[name].get("fullnameOverride", "trimtab")
    text = named(manifests, "ConfigMap", f"{stem}-preference")["data"]["preference.toml"]
    config = PreferenceConfig.model_validate(tomllib.loads(text))
    guarded = config.access.keys_file is not None or (
        config.tls is not None and config.tls.client_ca is not None
    )
    assert config.server.allow_unauthenticated != guarded
    ports = {
        port["name"]: port["containerPort"] for port in _container(manifests, f"{stem}-preference")["ports"]
    }
    assert ports == {
        "grpc": config.server.port,
        "health": config.server.health_port,
        "metrics": config.server.metrics_port,
    } | ({"http": config.server.http_port} if "pages" in MATRIX[name]["preference"] else {})


def test_the_queue_server_is_set_as_the_stages_ask() -> None:
    """Append-only file, no eviction, every second to disk: otherwise groups could vanish."""
    manifests = render(MATRIX["valkey"])
    conf = named(manifests, "ConfigMap", "trimtab-valkey")["data"]["valkey.conf"].splitlines()
    assert {"appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction"} <= set(conf)


def test_pods_that_share_an_address_space_listen_on_their_own() -> None:
    """Where it is asked for, every program of the chart is told its pod's address; else none is."""
    for name, wanted in (("own addresses", True), ("everything", False)):
        for item in of_kind(render(MATRIX[name]), "Deployment", "StatefulSet"):
            [container] = item["spec"]["template"]["spec"]["containers"]
            told = "POD_IP" in " ".join([*container["command"], *container["args"]])
            known = "POD_IP" in [variable["name"] for variable in container.get("env", ())]
            assert (told, known) == (wanted, wanted), item["metadata"]["name"]


def test_where_runs_are_there_is_the_queues_secret() -> None:
    """The same Secret, with the same URL, lies in the release's namespace and in each of the runs'."""
    secrets = of_kind(render(EVERYTHING), "Secret")
    assert {item["metadata"]["namespace"] for item in secrets} == {"trimtab-system", "team-a", "team-b"}
    assert {item["metadata"]["name"] for item in secrets} == {"rlhf-queue"}
    assert len({item["data"]["url"] for item in secrets}) == 1


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"queue": {"externalUrl": "redis://a:1/0", "valkey": {"enabled": True}}},
            "one of externalUrl and valkey",
        ),
        (
            {"queue": {"externalUrl": "redis://a:1/0", "existingSecret": "b"}},
            "one of externalUrl and existingSecret",
        ),
        ({"operator": {"allNamespaces": True, "namespaces": ["a"]}}, "one of namespaces and allNamespaces"),
        (
            {"operator": {"allNamespaces": True}, "queue": {"valkey": {"enabled": True}}},
            "queue.existingSecret",
        ),
        ({"preference": {"enabled": True}}, "preference.database.existingSecret"),
        (
            {"preference": {"enabled": True, "database": {"existingSecret": "x"}, "tls": {"enabled": True}}},
            "secretName",
        ),
        (
            {
                "preference": {
                    "enabled": True,
                    "database": {"existingSecret": "x"},
                    "accessKeys": {"existingSecret": "k"},
                }
            },
            "in the clear",
        ),
        (
            {
                "preference": {
                    "enabled": True,
                    "database": {"existingSecret": "x"},
                    "tls": {"enabled": True, "secretName": "own"},
                    "pages": {"enabled": True},
                }
            },
            "client certificates",
        ),
        ({"certManager": {"certificates": [{"name": "a"}]}}, "certManager.enabled"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(values: Values, told: str) -> None:
    """Helm ends with a line that names what to set."""
    assert told in refused(values)


def _toml(values: Values) -> dict[str, Any]:
    stem = values.get("fullnameOverride", "trimtab")
    return tomllib.loads(named(render(values), "ConfigMap", f"{stem}-operator")["data"]["operator.toml"])


def _container(manifests: list[dict[str, Any]], deployment: str) -> dict[str, Any]:
    [container] = named(manifests, "Deployment", deployment)["spec"]["template"]["spec"]["containers"]
    return dict(container)


@pytest.mark.parametrize("release", ["2024", "on"])
def test_names_that_look_like_something_else_stay_names(release: str) -> None:
    """YAML reads them as a number, or as yes; an API server takes neither for a label or a namespace."""
    ran = helm("template", release, str(CHART), "--namespace", "1000", values=EVERYTHING)
    assert ran.returncode == 0, ran.stderr
    for manifest in yaml.safe_load_all(ran.stdout):
        if manifest is not None:
            check(manifest, VERSIONS[-1])
            labels = manifest["metadata"].get("labels", {})
            assert labels.get("app.kubernetes.io/instance", release) == release
            if manifest["kind"] == "ConfigMap" and "operator.toml" in manifest["data"]:
                config = OperatorConfig.model_validate(tomllib.loads(manifest["data"]["operator.toml"]))
                assert config.render.operator_labels["trimtab.dev/release"] == release


def test_a_users_number_is_written_out() -> None:
    """OpenShift's are beyond a thousand million, which a template writes as 1.00068e+09 unless it is told to."""
    manifests = render({**EVERYTHING, "userId": 1000680000})
    pods = [one["spec"]["template"]["spec"] for one in manifests if "template" in one.get("spec", {})]
    assert pods
    assert {pod["securityContext"]["runAsUser"] for pod in pods} == {1000680000}
    toml = named(manifests, "ConfigMap", "rlhf-operator")["data"]["operator.toml"]
    assert "user = 1000680000\n" in toml

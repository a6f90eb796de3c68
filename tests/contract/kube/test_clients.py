"""The clients that people use: typed, dynamic, watching; and kubectl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, dynamic, watch
from kubernetes.client.exceptions import ApiException

from tests.contract.kube.cluster import Cluster
from tests.contract.kube.conftest import REAL
from tests.contract.kube.objects import config_map, deployment, job, widget
from tests.fakes.kube import KubeServer
from tests.unit.orchestrator.cluster.objects import RUN

Kubectl = Callable[..., str]


def test_typed_clients_read_what_they_wrote(cluster: Cluster) -> None:
    """Core, apps and batch."""
    space = cluster.namespace
    core: Any = client.CoreV1Api(cluster.api)
    apps: Any = client.AppsV1Api(cluster.api)
    batch: Any = client.BatchV1Api(cluster.api)
    core.create_namespaced_config_map(space, client.V1ConfigMap(metadata={"name": "a"}, data={"x": "1"}))
    assert core.read_namespaced_config_map("a", space).data == {"x": "1"}
    apps.create_namespaced_deployment(space, deployment("b"))
    assert [each.metadata.name for each in apps.list_namespaced_deployment(space).items] == ["b"]
    apps.patch_namespaced_deployment("b", space, {"spec": {"template": {"metadata": {"labels": {"x": "y"}}}}})
    assert apps.read_namespaced_deployment("b", space).spec.template.metadata.labels == {"app": "b", "x": "y"}
    apps.patch_namespaced_deployment_scale("b", space, {"spec": {"replicas": 0}})
    batch.create_namespaced_job(space, job("c"))
    assert batch.read_namespaced_job("c", space).spec.suspend
    batch.delete_namespaced_job("c", space, propagation_policy="Background")
    with pytest.raises(ApiException) as refused:
        batch.read_namespaced_job("c", space)
    assert refused.value.status == 404


def test_a_lease_is_held_by_one(cluster: Cluster) -> None:
    """Leader election rests on optimistic locking."""
    leases: Any = client.CoordinationV1Api(cluster.api)
    spec = {"holderIdentity": "one", "leaseDurationSeconds": 15, "renewTime": "2025-01-01T00:00:00.000001Z"}
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "leader"},
        "spec": spec,
    }
    leases.create_namespaced_lease(cluster.namespace, lease)
    first, second = (leases.read_namespaced_lease("leader", cluster.namespace) for _ in range(2))
    first.spec.holder_identity = "first"
    leases.replace_namespaced_lease("leader", cluster.namespace, first)
    second.spec.holder_identity = "second"
    with pytest.raises(ApiException) as refused:
        leases.replace_namespaced_lease("leader", cluster.namespace, second)
    assert refused.value.status == 409
    assert leases.read_namespaced_lease("leader", cluster.namespace).spec.holder_identity == "first"


def test_events_of_both_groups_are_the_same(cluster: Cluster) -> None:
    """Written as events.k8s.io/v1, read by `kubectl describe` as v1."""
    regarding = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "a",
        "namespace": cluster.namespace,
        "uid": "u",
    }
    events: Any = client.EventsV1Api(cluster.api)
    core: Any = client.CoreV1Api(cluster.api)
    events.create_namespaced_event(cluster.namespace, {
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "a.1"}, "regarding": regarding,
        "eventTime": "2025-01-01T00:00:00.000001Z", "reason": "Scaled", "action": "Scale", "type": "Normal",
        "note": "from 1 to 2", "reportingController": "trimtab.dev/operator", "reportingInstance": "one",
    })  # fmt: skip
    about = "involvedObject.uid=u,involvedObject.kind=ConfigMap"
    found = core.list_namespaced_event(cluster.namespace, field_selector=about)
    assert [(each.message, each.involved_object.name) for each in found.items] == [("from 1 to 2", "a")]
    found = events.list_namespaced_event(cluster.namespace, field_selector="reason=Scaled")
    assert [each.note for each in found.items] == ["from 1 to 2"]


def test_the_dynamic_client_discovers_and_applies(cluster: Cluster) -> None:
    """By kind alone."""
    discovering: Any = dynamic.DynamicClient
    found = discovering(cluster.api).resources.get(api_version="contract.trimtab.dev/v1", kind="Widget")
    made = found.server_side_apply(
        body=widget("a"), namespace=cluster.namespace, field_manager="one", force_conflicts=True
    )
    again = found.server_side_apply(
        body=widget("a"), namespace=cluster.namespace, field_manager="one", force_conflicts=True
    )
    assert made.metadata.resourceVersion == again.metadata.resourceVersion
    found.status.patch(
        body={"metadata": {"name": "a"}, "status": {"phase": "x"}}, namespace=cluster.namespace,
        content_type="application/merge-patch+json",
    )  # fmt: skip
    assert found.get(name="a", namespace=cluster.namespace).status.phase == "x"


def test_the_watch_helper_streams_until_it_is_stopped(cluster: Cluster) -> None:
    """Typed objects."""
    core: Any = client.CoreV1Api(cluster.api)
    watching: Any = watch.Watch
    watcher = watching()
    since = core.list_namespaced_config_map(cluster.namespace).metadata.resource_version
    cluster.create(config_map("a", x="1"))
    for event in watcher.stream(
        core.list_namespaced_config_map, cluster.namespace, resource_version=since, timeout_seconds=20
    ):
        if event["object"].metadata.name == "a":
            assert (event["type"], event["object"].data) == ("ADDED", {"x": "1"})
            watcher.stop()


@pytest.fixture
def kubectl(cluster: Cluster, fake_server: KubeServer | None, tmp_path: Path) -> Kubectl:
    """kubectl in the test's namespace."""
    binary = shutil.which("kubectl")
    if binary is None:
        pytest.skip("kubectl is not installed on this machine")
    given = os.environ.get(REAL)
    config = Path(given) if given else fake_server.kubeconfig(tmp_path / "config")  # type: ignore[union-attr]

    def run(*words: str, given: str = "") -> str:
        command = [binary, f"--kubeconfig={config}", f"--namespace={cluster.namespace}", *words]
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        done = subprocess.run(
            command, input=given, text=True, capture_output=True, env=environment, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_kubectl_applies_scales_waits_and_deletes(cluster: Cluster, kubectl: Kubectl) -> None:
    """What people type."""
    text = yaml.safe_dump_all([widget("a"), deployment("b")])
    kubectl("apply", "-f", "-", given=text)
    assert "unchanged" in kubectl("apply", "-f", "-", given=yaml.safe_dump(widget("a")))
    kubectl(
        "apply", "--server-side", "--force-conflicts", "-f", "-", given=yaml.safe_dump(widget("a", size=3))
    )
    assert cluster.get("Widget", "a")["spec"]["size"] == 3
    kubectl("scale", "widget/a", "--replicas=4")
    assert json.loads(kubectl("get", "widget", "a", "-o", "json"))["spec"]["replicas"] == 4
    kubectl("label", "deployment/b", "x=y")
    kubectl("set", "image", "deployment/b", "main=registry.k8s.io/pause:3.9")
    found = cluster.get("Deployment", "b")
    assert found["spec"]["template"]["spec"]["containers"][0]["image"].endswith("3.9")
    assert "a" in kubectl("get", "widgets")
    run = RUN | {"metadata": {"name": "helpful"}}
    kubectl("apply", "-f", "-", given=yaml.safe_dump(run))
    head, row = kubectl("get", "trun").splitlines()
    assert head.split()[:3] == ["NAME", "AVAILABLE", "STATE"]
    assert row.split()[0] == "helpful"
    began = time.monotonic()
    kubectl("delete", "widget/a", "deployment/b", "--wait")
    assert cluster.is_gone("Widget", "a")
    assert time.monotonic() - began < 60

"""What every object has, and what a server refuses."""

from __future__ import annotations

import pytest

from tests.contract.kube.cluster import Cluster, Refused, version
from tests.contract.kube.objects import config_map, deployment, job, pod, service, widget


def test_a_new_object_is_marked_by_the_server(cluster: Cluster) -> None:
    """uid, creationTimestamp and resourceVersion are the server's."""
    sent = config_map("a", x="1")
    sent["metadata"] |= {"uid": "mine", "creationTimestamp": "2001-01-01T00:00:00Z"}
    meta = cluster.create(sent)["metadata"]
    assert len(meta["uid"]) == 36
    assert meta["creationTimestamp"] > "2020"
    assert int(meta["resourceVersion"]) > 0
    assert meta["namespace"] == cluster.namespace


def test_a_generated_name_has_five_letters_more(cluster: Cluster) -> None:
    """generateName."""
    sent = config_map("") | {"metadata": {"generateName": "some-"}}
    name = cluster.create(sent)["metadata"]["name"]
    assert name.startswith("some-")
    assert len(name) == len("some-") + 5


def test_a_second_object_of_a_name_is_refused(cluster: Cluster) -> None:
    """409 AlreadyExists, with details that name it."""
    cluster.create(deployment("a"))
    with pytest.raises(Refused) as refused:
        cluster.create(deployment("a"))
    status = refused.value.status
    assert (refused.value.code, status["reason"]) == (409, "AlreadyExists")
    assert status["message"] == 'deployments.apps "a" already exists'
    assert status["details"] == {"name": "a", "group": "apps", "kind": "deployments"}


def test_what_is_not_there_is_not_found(cluster: Cluster) -> None:
    """404 with a Status."""
    with pytest.raises(Refused) as refused:
        cluster.get("ConfigMap", "none")
    status = refused.value.status
    assert (refused.value.code, status["kind"], status["status"]) == (404, "Status", "Failure")
    assert status["message"] == 'configmaps "none" not found'
    assert status["details"] == {"name": "none", "kind": "configmaps"}


def test_an_object_needs_its_namespace(cluster: Cluster) -> None:
    """404 for the namespace, not for the object."""
    path = cluster.path("ConfigMap", namespace="nowhere")
    with pytest.raises(Refused) as refused:
        cluster.call("POST", path, config_map("a"))
    assert refused.value.status["message"] == 'namespaces "nowhere" not found'


def test_an_update_that_rests_on_an_old_version_is_refused(cluster: Cluster) -> None:
    """409 Conflict; the object stays as it was."""
    first = cluster.create(config_map("a", x="1"))
    second = cluster.replace(first | {"data": {"x": "2"}})
    with pytest.raises(Refused) as refused:
        cluster.replace(first | {"data": {"x": "3"}})
    assert (refused.value.code, refused.value.status["reason"]) == (409, "Conflict")
    assert "the object has been modified; please apply your changes" in refused.value.status["message"]
    assert cluster.get("ConfigMap", "a")["data"] == {"x": "2"}
    assert int(version(second)) > int(version(first))


def test_an_update_without_a_version_overwrites_where_the_kind_allows_it(cluster: Cluster) -> None:
    """ConfigMaps do, custom resources and Leases do not."""
    cluster.create(config_map("a", x="1"))
    assert cluster.replace(config_map("a", x="2"))["data"] == {"x": "2"}
    cluster.create(widget("a"))
    with pytest.raises(Refused) as refused:
        cluster.replace(widget("a", size=2))
    assert refused.value.code == 422
    assert refused.value.causes == [("FieldValueInvalid", "metadata.resourceVersion")]


def test_a_write_of_another_object_of_the_same_name_is_refused(cluster: Cluster) -> None:
    """A uid is a precondition."""
    found = cluster.create(config_map("a", x="1"))
    found["metadata"]["uid"] = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(Refused) as refused:
        cluster.replace(found)
    assert refused.value.code == 409


def test_an_update_that_changes_nothing_is_no_write(cluster: Cluster) -> None:
    """The version stays."""
    first = cluster.create(widget("a", colour="green"))
    assert version(cluster.replace(first)) == version(first)
    assert version(cluster.patch("Widget", "a", {"spec": {"colour": "green"}})) == version(first)


def test_the_url_names_the_object(cluster: Cluster) -> None:
    """400 where the body says otherwise."""
    found = cluster.create(config_map("a"))
    found["metadata"] = {"name": "b"}
    with pytest.raises(Refused) as refused:
        cluster.call("PUT", cluster.path("ConfigMap", "a"), found)
    assert refused.value.code == 400


def test_the_generation_counts_what_is_wanted(cluster: Cluster) -> None:
    """Not labels, not the status; and it has no other source."""
    first = cluster.create(widget("a"))
    assert first["metadata"]["generation"] == 1
    labelled = cluster.patch("Widget", "a", {"metadata": {"labels": {"x": "y"}, "generation": 7}})
    assert labelled["metadata"]["generation"] == 1
    assert (
        cluster.patch("Widget", "a", {"status": {"phase": "x"}}, sub="status")["metadata"]["generation"] == 1
    )
    assert cluster.patch("Widget", "a", {"spec": {"size": 2}})["metadata"]["generation"] == 2


def test_a_dry_run_stores_nothing(cluster: Cluster) -> None:
    """dryRun=All answers as a write would."""
    assert cluster.create(config_map("a", x="1"), dryRun="All")["data"] == {"x": "1"}
    assert cluster.is_gone("ConfigMap", "a")


@pytest.mark.parametrize(
    ("obj", "field"),
    [
        (config_map("Upper"), "metadata.name"),
        (service("with.dots"), "metadata.name"),
        (config_map("a") | {"metadata": {"name": "a", "labels": {"x": "y" * 64}}}, "metadata.labels"),
        (config_map("a") | {"metadata": {"name": "a", "labels": {"x": "not good"}}}, "metadata.labels"),
        (deployment("a", selector={"matchLabels": {"app": "other"}}), "spec.template.metadata.labels"),
    ],
)
def test_what_a_client_may_get_wrong_is_named(cluster: Cluster, obj: dict[str, object], field: str) -> None:
    """422 Invalid with the field."""
    with pytest.raises(Refused) as refused:
        cluster.create(obj)
    assert (refused.value.code, refused.value.status["reason"]) == (422, "Invalid")
    assert field in [name for _, name in refused.value.causes]


def test_what_cannot_change_does_not(cluster: Cluster) -> None:
    """A Deployment's selector, a Job's template."""
    cluster.create(deployment("a"))
    with pytest.raises(Refused) as refused:
        labels = {"app": "b"}
        change = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}}}
        cluster.patch("Deployment", "a", {"spec": change})
    assert ("FieldValueInvalid", "spec.selector") in refused.value.causes
    made = cluster.create(job("a"))
    cluster.patch("Job", "a", {"spec": {"suspend": False}})
    containers = [made["spec"]["template"]["spec"]["containers"][0] | {"image": "registry.k8s.io/pause:3.9"}]
    with pytest.raises(Refused) as refused:
        cluster.patch("Job", "a", {"spec": {"template": {"spec": {"containers": containers}}}})
    assert ("FieldValueInvalid", "spec.template") in refused.value.causes


def test_defaults_that_clients_read(cluster: Cluster) -> None:
    """Filled in once, and the same however often the object is written."""
    without = deployment("a")
    del without["spec"]["replicas"]
    assert cluster.create(without, dryRun="All")["spec"]["replicas"] == 1
    made = cluster.create(job("a"))
    assert made["spec"]["completions"] == made["spec"]["parallelism"] == 1
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert labels["batch.kubernetes.io/job-name"] == "a"
    assert made["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert cluster.create(pod("a"))["status"]["phase"] == "Pending"
    assert cluster.create(service("a"))["spec"]["ports"][0] == {
        "name": "grpc", "port": 50051, "protocol": "TCP", "targetPort": 50051,
    }  # fmt: skip


def test_text_of_a_secret_is_kept_as_data(cluster: Cluster) -> None:
    """stringData is for writing."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "stringData": {"key": "value"}}
    made = cluster.create(secret)
    assert made["data"] == {"key": "dmFsdWU="}
    assert made["type"] == "Opaque"
    assert "stringData" not in made


def test_an_unknown_field_is_dropped_or_refused_as_asked(cluster: Cluster) -> None:
    """fieldValidation."""
    sent = deployment("a")
    sent["spec"]["replica"] = 3
    with pytest.raises(Refused) as refused:
        cluster.create(sent, fieldValidation="Strict")
    assert refused.value.code == 400
    assert 'unknown field "spec.replica"' in refused.value.status["message"]
    assert "replica" not in cluster.create(sent)["spec"]

"""Custom kinds: defaults, pruning, schema, rules, and what has not changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.contract.kube.cluster import Cluster, Refused, until
from tests.contract.kube.objects import WIDGETS, widget
from tests.unit.orchestrator.cluster.objects import FULL_MODEL, FULL_RUN, MODEL, RUN, changed


def test_defaults_are_filled_in(cluster: Cluster) -> None:
    """Of what is left out, where the object above is there or has a default itself."""
    spec = cluster.create(widget("a", size=1))["spec"]
    assert spec == {"size": 1, "colour": "red", "replicas": 1, "nested": {"depth": 3}}


def test_unknown_fields_are_dropped_except_where_they_are_welcome(cluster: Cluster) -> None:
    """Pruning; with a warning for those who read headers."""
    spec = cluster.create(widget("a", sise=2, free={"any": {"thing": [1, "x"]}}))["spec"]
    assert "sise" not in spec
    assert spec["free"] == {"any": {"thing": [1, "x"]}}


def test_unknown_fields_are_refused_where_that_is_asked_for(cluster: Cluster) -> None:
    """fieldValidation=Strict."""
    with pytest.raises(Refused) as refused:
        cluster.create(widget("a", sise=2), fieldValidation="Strict")
    assert refused.value.code == 400
    assert 'strict decoding error: unknown field "spec.sise"' in refused.value.status["message"]


@pytest.mark.parametrize(
    ("spec", "reason", "field", "words"),
    [
        ({"size": 101}, "FieldValueInvalid", "spec.size", "should be less than or equal to 100"),
        ({"size": -1}, "FieldValueInvalid", "spec.size", "should be greater than or equal to 0"),
        ({"size": "1"}, "FieldValueTypeInvalid", "spec.size", 'must be of type integer: "string"'),
        ({"size": 1.5}, "FieldValueTypeInvalid", "spec.size", 'must be of type integer: "number"'),
        ({"colour": "blue"}, "FieldValueNotSupported", "spec.colour", 'supported values: "red", "green"'),
        ({"code": "Abc"}, "FieldValueInvalid", "spec.code", "should match '^[a-z]+$'"),
        ({"code": "a"}, "FieldValueInvalid", "spec.code", "should be at least 2 chars long"),
        ({"code": "abcdefghi"}, "FieldValueTooLong", "spec.code", "Too long"),
        ({"items": [{"name": n} for n in "abcde"]}, "FieldValueTooMany", "spec.items", "must have at most 4 items"),
        ({"items": [{"value": "x"}]}, "FieldValueRequired", "spec.items[0].name", "Required value"),
        ({"items": [{"name": "x"}, {"name": "x"}]}, "FieldValueDuplicate", "spec.items[1]", "Duplicate value"),
        ({"tags": ["x", "x"]}, "FieldValueDuplicate", "spec.tags[1]", "Duplicate value"),
        ({"limits": {"a": True}}, "FieldValueTypeInvalid", "spec.limits.a", "must be of type integer,string"),
    ],
)  # fmt: skip
def test_the_schema_is_enforced(
    cluster: Cluster, spec: dict[str, Any], reason: str, field: str, words: str
) -> None:
    """422 with reason, field and the server's words."""
    with pytest.raises(Refused) as refused:
        cluster.create(widget("a", **spec))
    assert (refused.value.code, refused.value.status["reason"]) == (422, "Invalid")
    causes = refused.value.status["details"]["causes"]
    found = [each for each in causes if (each["reason"], each["field"]) == (reason, field)]
    assert found, causes
    assert words in found[0]["message"]


def test_all_that_is_wrong_is_said_at_once(cluster: Cluster) -> None:
    """Every cause; rules are only asked about objects that fit the schema."""
    sent = widget("a", size=200, colour="blue", most=1)
    with pytest.raises(Refused) as refused:
        cluster.create(sent)
    assert {field for _, field in refused.value.causes} >= {"spec.size", "spec.colour"}
    assert 'Widget.contract.trimtab.dev "a" is invalid: [' in refused.value.status["message"]
    assert "size must be at most most" not in refused.value.status["message"]
    assert "some validation rules were not checked" in refused.value.status["message"]


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"size": 5, "most": 4}, "spec", "size must be at most most"),
        ({"ratio": 1.5}, "spec.ratio", "ratio must be at most 1"),
        ({"ratio": 2}, "spec.ratio", "ratio must be at most 1"),
    ],
)
def test_rules_are_enforced(cluster: Cluster, spec: dict[str, Any], field: str, words: str) -> None:
    """422 with the rule's message; an integer is a number where the schema says number."""
    with pytest.raises(Refused) as refused:
        cluster.create(widget("a", **spec))
    assert refused.value.causes == [("FieldValueInvalid", field)]
    assert words in refused.value.status["message"]


def test_a_transition_rule_looks_at_changes_only(cluster: Cluster) -> None:
    """Setting a field for the first time is none."""
    cluster.create(widget("a"))
    cluster.patch("Widget", "a", {"spec": {"fixed": "x"}})
    cluster.patch("Widget", "a", {"spec": {"fixed": "x", "size": 2}})
    with pytest.raises(Refused) as refused:
        cluster.patch("Widget", "a", {"spec": {"fixed": "y"}})
    assert refused.value.causes == [("FieldValueInvalid", "spec.fixed")]
    assert "fixed cannot change" in refused.value.status["message"]


def test_a_rule_that_got_stricter_does_not_lock_old_objects(cluster: Cluster) -> None:
    """What an update does not change is not looked at again."""
    group = f"ratchet-{cluster.namespace}.trimtab.dev"
    crd = copy.deepcopy(WIDGETS)
    crd["metadata"]["name"] = f"gadgets.{group}"
    crd["spec"] |= {"group": group, "names": {"kind": "Gadget", "plural": "gadgets"}}
    made = cluster.create(crd)
    path = f"/apis/{group}/v1/namespaces/{cluster.namespace}/gadgets"

    def is_served() -> bool:
        try:
            cluster.call("GET", path)
        except Refused:
            return False
        return True

    until(is_served, "gadgets served")
    gadget = widget("a", size=50) | {"apiVersion": f"{group}/v1", "kind": "Gadget"}
    cluster.call("POST", path, gadget)
    name = made["metadata"]["name"]
    change = [{"op": "replace", "value": 10,
               "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/size/maximum"}]  # fmt: skip
    cluster.patch("CustomResourceDefinition", name, change, "application/json-patch+json")

    def is_stricter() -> bool:
        try:
            cluster.call("POST", path, gadget | {"metadata": {"name": "b"}}, dryRun="All")
        except Refused:
            return True
        return False

    until(is_stricter, "the new schema is in force")
    labelled = cluster.call(
        "PATCH", f"{path}/a", {"metadata": {"labels": {"x": "y"}}}, "application/merge-patch+json"
    )
    assert labelled["spec"]["size"] == 50
    with pytest.raises(Refused):
        cluster.call("PATCH", f"{path}/a", {"spec": {"size": 49}}, "application/merge-patch+json")
    cluster.delete("CustomResourceDefinition", name)
    until(lambda: cluster.is_gone("CustomResourceDefinition", name), "kind gone")
    with pytest.raises(Refused) as refused:
        cluster.call("GET", path)
    assert refused.value.code == 404


def test_a_definition_needs_a_name_that_fits(cluster: Cluster) -> None:
    """plural and group."""
    crd = copy.deepcopy(WIDGETS)
    crd["metadata"]["name"] = "gadgets.contract.trimtab.dev"
    with pytest.raises(Refused) as refused:
        cluster.create(crd)
    assert ("FieldValueInvalid", "metadata.name") in refused.value.causes


def test_the_projects_kinds_are_served_and_discovered(cluster: Cluster) -> None:
    """With their short names and subresources."""
    found = cluster.call("GET", "/apis/trimtab.dev/v1alpha1")["resources"]
    by_name = {each["name"]: each for each in found}
    assert by_name["trainingruns"]["shortNames"] == ["trun"]
    assert by_name["trainingruns"]["kind"] == "TrainingRun"
    assert by_name["rewardmodels/scale"]["kind"] == "Scale"
    groups = [each["name"] for each in cluster.call("GET", "/apis")["groups"]]
    assert {"apps", "batch", "coordination.k8s.io", "trimtab.dev"} <= set(groups)


@pytest.mark.parametrize(
    "obj", [RUN, FULL_RUN, MODEL, FULL_MODEL], ids=["run", "full run", "model", "full model"]
)
def test_the_projects_objects_are_accepted(cluster: Cluster, obj: dict[str, Any]) -> None:
    """Nothing of them is pruned."""
    sent = obj | {"metadata": {"name": obj["metadata"]["name"]}}
    cluster.create(sent, fieldValidation="Strict")
    assert cluster.get(obj["kind"], obj["metadata"]["name"])["metadata"]["generation"] == 1


def test_what_a_run_cannot_change_is_refused_in_words(cluster: Cluster) -> None:
    """The model, for the life of a run."""
    cluster.create(RUN | {"metadata": {"name": "helpful"}})
    with pytest.raises(Refused) as refused:
        cluster.patch("TrainingRun", "helpful", {"spec": {"model": {"path": "org/other"}}})
    assert refused.value.causes == [("FieldValueInvalid", "spec.model")]
    assert "model cannot change once the run exists: make another run" in refused.value.status["message"]
    scaled = cluster.patch("TrainingRun", "helpful", {"spec": {"roles": {"policy": {"replicas": 3}}}})
    assert scaled["metadata"]["generation"] == 2


def test_a_run_with_a_mistake_is_refused_in_words(cluster: Cluster) -> None:
    """A CEL rule of the project's own."""
    broken = changed(RUN, roles={"policy": {"scaling": {"mode": "Auto"}}}) | {"metadata": {"name": "helpful"}}
    with pytest.raises(Refused) as refused:
        cluster.create(broken)
    assert refused.value.code == 422
    assert refused.value.causes[0][1] == "spec.roles.policy.scaling"

"""The operator has the rights to what it renders and does, and to nothing else."""

from __future__ import annotations

from functools import cache

from orchestrator.cluster.crds import crds
from tests.integration.charts.examples import OBJECTS, manifests_of, resource_of
from tests.integration.charts.matrix import MATRIX
from tests.integration.charts.rendering import named, render

APPLY = {"get", "create", "patch", "delete"}
"""Server-side apply of what is not there needs both patch and create."""
NEVER_CHANGED = {("batch", "jobs"), ("", "secrets")}
"""Made once, as they are."""


def rights() -> dict[tuple[str, str], set[str]]:
    """(group, resource) to verbs, in a namespace of runs."""
    found: dict[tuple[str, str], set[str]] = {}
    for rule in named(render(), "Role", "trimtab-operator")["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


@cache
def rendered() -> frozenset[tuple[str, str]]:
    """(group, resource) of all that an object can stand for: the examples, each stage of each run."""
    return frozenset(resource_of(item) for example in OBJECTS for item in manifests_of(example))


def test_it_may_apply_and_remove_all_that_it_renders() -> None:
    """Of each kind that a run or reward model stands for."""
    needed = {
        resource: APPLY - ({"patch"} if resource in NEVER_CHANGED else set()) for resource in rendered()
    }
    missing = {resource: verbs - rights().get(resource, set()) for resource, verbs in needed.items()}
    assert {resource: verbs for resource, verbs in missing.items() if verbs} == {}
    assert len(missing) > 8


def test_it_may_make_nothing_else() -> None:
    """`create` is there for what it renders and for Events, no more."""
    makes = {resource for resource, verbs in rights().items() if "create" in verbs}
    assert makes == rendered() | {("events.k8s.io", "events")}
    changes = {resource for resource, verbs in rights().items() if "patch" in verbs}
    assert not changes & NEVER_CHANGED


def test_it_never_makes_what_people_ask_for() -> None:
    """People make runs and reward models; the operator keeps their status, and removes what has outlived its time."""
    for kind in crds():
        plural = kind["spec"]["names"]["plural"]
        assert rights()["trimtab.dev", plural] == {"get", "list", "watch", "patch", "delete"}
        assert rights()["trimtab.dev", f"{plural}/status"] == {"get", "patch"}


def test_it_scales_and_drains() -> None:
    """The scaler writes /scale; pods are marked and removed by name, never several at once."""
    assert rights()["apps", "deployments/scale"] == {"patch"}
    assert rights()["", "pods"] == {"get", "list", "watch", "patch", "delete"}
    assert all("deletecollection" not in verbs for verbs in rights().values())


def test_kueue_is_a_choice() -> None:
    """Switched off, the operator has no right to Workloads."""
    assert "kueue" in str(named(render(), "Role", "trimtab-operator"))
    assert "kueue" not in str(named(render(MATRIX["no kueue"]), "Role", "trimtab-operator"))


def test_what_kueue_keeps_for_the_whole_cluster_is_a_choice() -> None:
    """Flavors say where pods go, priority classes their number: both are read by name, where it is switched on."""
    role = named(render(MATRIX["flavors"]), "ClusterRole", "trimtab-operator-trimtab-system-flavors")
    [rule] = role["rules"]
    assert (rule["resources"], rule["verbs"]) == (["resourceflavors", "workloadpriorityclasses"], ["get"])
    assert "workloadpriorityclasses" not in str(render())


def test_the_lease_is_its_own() -> None:
    """It may take and renew the one Lease that its configuration names."""
    manifests = render({"operator": {"leaseName": "leader"}})
    make, keep = named(manifests, "Role", "trimtab-operator-leader")["rules"]
    assert make["verbs"] == ["create"]
    assert (keep["resourceNames"], keep["verbs"]) == (["leader"], ["get", "update"])
    assert 'name = "leader"' in named(manifests, "ConfigMap", "trimtab-operator")["data"]["operator.toml"]

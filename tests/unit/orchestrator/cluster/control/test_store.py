"""What is there, by name and by owner."""

from __future__ import annotations

from typing import Any

from orchestrator.cluster.control.resources import Object, Ref
from orchestrator.cluster.control.store import Store

RUN = Ref("TrainingRun", "ns", "helpful")


def thing(name: str, version: int, *, uid: str = "u", kind: str = "Service", **labels: str) -> Object:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "ns",
        "uid": uid,
        "resourceVersion": str(version),
        "labels": {"trimtab.dev/run": "helpful", **labels},
    }
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata}


def test_a_change_names_the_owner() -> None:
    """By its labels; a run is its own owner, a stranger has none."""
    store = Store()
    assert store.put(thing("a", 1)) == RUN
    assert store.put(thing("helpful", 1, kind="TrainingRun")) == RUN
    stranger = thing("b", 1)
    stranger["metadata"]["labels"] = {}
    assert store.put(stranger) is None
    assert [item["metadata"]["name"] for item in store.owned(RUN)] == ["a"]


def test_an_older_state_is_passed_over() -> None:
    """The answer to our write may be taken in before the watch tells what was there before it."""
    store = Store()
    store.put(thing("a", 9))
    assert store.put(thing("a", 8)) is None
    assert store.get(Ref("Service", "ns", "a")) == thing("a", 9)
    assert store.put(thing("a", 8, uid="another")) == RUN


def test_what_is_gone_does_not_come_back() -> None:
    """An answer that arrives after the watch has told the end is of an object that is no more."""
    store = Store()
    store.put(thing("a", 3))
    assert store.remove(Ref("Service", "ns", "a"), "u") == RUN
    assert store.put(thing("a", 4)) is None
    assert store.owned(RUN) == []
    assert store.put(thing("a", 5, uid="made anew")) == RUN


def test_what_only_lost_its_label_comes_back_with_it() -> None:
    """A watch by label tells its end. Added or listed in a newer version it is there; by a late answer it is not."""
    for come_back in ("added", "listed"):
        store = Store()
        store.put(thing("a", 3))
        store.remove(Ref("Service", "ns", "a"), "u", "5")
        assert store.put(thing("a", 5), anew=True) is None
        assert store.put(thing("a", 6)) is None
        if come_back == "added":
            assert store.put(thing("a", 6), anew=True) == RUN
        else:
            assert store.replace("Service", "ns", [thing("a", 6)], "8") == {RUN}
        assert store.put(thing("a", 7)) == RUN


def test_the_end_of_one_is_not_the_end_of_its_successor() -> None:
    """A late DELETED of the object before says nothing of the one that has its name now."""
    store = Store()
    store.put(thing("a", 5, uid="new"))
    assert store.remove(Ref("Service", "ns", "a"), "old") is None
    assert len(store) == 1


def test_a_list_replaces_and_tells_what_it_changes() -> None:
    """What is new, changed or gone; what is the same wakes nobody, and what we made since then is kept."""
    store = Store()
    for item in (thing("same", 1), thing("gone", 2), thing("changed", 3), thing("ours", 20)):
        store.put({**item, "metadata": {**item["metadata"], "uid": item["metadata"]["name"]}})
    fresh = [thing("same", 1, uid="same"), thing("changed", 9, uid="changed")]
    assert store.replace("Service", "ns", fresh, version="10") == {RUN}
    assert {item["metadata"]["name"] for item in store.owned(RUN)} == {"same", "changed", "ours"}
    assert store.replace("Service", "ns", [*fresh, thing("ours", 20, uid="ours")], version="21") == set()


def test_a_list_of_one_namespace_leaves_others_alone() -> None:
    """And a list of one kind leaves other kinds."""
    store = Store()
    store.put(thing("a", 1))
    assert store.replace("Service", "elsewhere", [], version="5") == set()
    assert store.replace("Pod", "ns", [], version="5") == set()
    assert len(store) == 1


def test_an_object_may_move_to_another_owner() -> None:
    """By its labels; the owner before has it no longer."""
    store = Store()
    store.put(thing("a", 1))
    moved = thing("a", 2)
    moved["metadata"]["labels"] = {"trimtab.dev/run": "other"}
    assert store.put(moved) == Ref("TrainingRun", "ns", "other")
    assert store.owned(RUN) == []

"""Ownership of fields, worked out by hand: who has what after each of a few writes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.kube.errors import ApiError
from tests.fakes.kube.managers import Manager, Owners, apply, read_owners, update, write_owners
from tests.unit.fakes.kube.shapes import WHOLE

Paths = set[tuple[str, ...]]
ITEM = 'k:{"name":"a"}'


class Story:
    """An object and its owners, through writes at times 1, 2, 3, …"""

    def __init__(self) -> None:
        self.value: dict[str, Any] = {}
        self.owners: Owners = {}
        self.now = 0

    def apply(self, name: str, value: dict[str, Any], *, force: bool = False) -> Story:
        """A manager states what it wants."""
        self.now += 1
        manager = Manager(name, True, "v1")
        self.value, self.owners = apply(
            WHOLE, self.value, value, self.owners, manager, str(self.now), force=force
        )
        return self

    def write(self, name: str, value: dict[str, Any], subresource: str = "") -> Story:
        """A manager replaces the whole."""
        self.now += 1
        manager = Manager(name, False, "v1", subresource)
        self.owners = update(WHOLE, self.value, value, self.owners, manager, str(self.now))
        self.value = value
        return self

    def has(self, name: str, *, applies: bool = True) -> Paths:
        """What somebody owns."""
        found = [
            held
            for held in self.owners.values()
            if (held.manager.name, held.manager.applies) == (name, applies)
        ]
        return set(found[0].fields) if found else set()


def test_an_applier_owns_what_it_states() -> None:
    """No more."""
    story = Story().write("hand", {"number": 1}).apply("one", {"text": "x"})
    assert story.value == {"text": "x", "number": 1}
    assert story.has("one") == {("f:text",)}
    assert story.has("hand", applies=False) == {("f:number",)}


def test_what_is_given_up_goes() -> None:
    """A field, an object with all that was stated in it."""
    story = (
        Story().apply("one", {"text": "x", "inner": {"a": 1, "deep": {"c": 1}}}).apply("one", {"text": "x"})
    )
    assert story.value == {"text": "x"}
    assert story.has("one") == {("f:text",)}


def test_what_is_given_up_and_owned_by_another_stays() -> None:
    """By an applier or an updater."""
    story = Story().apply("one", {"inner": {"a": 1, "b": 2}}).apply("two", {"inner": {"a": 1}})
    assert story.apply("one", {}).value == {"inner": {"a": 1}}
    story = Story().apply("one", {"inner": {"a": 1}}).write("hand", {"inner": {"a": 1, "b": 2}})
    assert story.apply("one", {}).value == {"inner": {"b": 2}}


def test_what_nobody_owns_stays_beside_what_somebody_does() -> None:
    """A default in an object whose owner gives up another of its fields."""
    story = Story().apply("one", {"inner": {"a": 1}}).apply("two", {"inner": {"b": 2}})
    story.value = {"inner": {"a": 1, "b": 2, "deep": {"c": 9}}}  # as the server fills it in
    assert story.apply("one", {}).value == {"inner": {"b": 2, "deep": {"c": 9}}}


def test_what_nobody_owns_goes_with_an_element_that_is_given_up() -> None:
    """An element goes as a whole, defaults in it too."""
    story = Story().apply("one", {"items": [{"name": "a"}]})
    story.value = {"items": [{"name": "a", "value": "default"}]}
    assert story.apply("one", {}).value == {}


def test_an_element_of_two_owners_loses_what_one_gives_up() -> None:
    """Its key stays as long as one states it."""
    story = Story().apply("one", {"items": [{"name": "a", "value": "1"}]})
    story.apply("two", {"items": [{"name": "a", "more": {"x": 1}}]}).apply("one", {})
    assert story.value == {"items": [{"name": "a", "more": {"x": 1}}]}
    assert story.has("two") == {
        ("f:items", ITEM), ("f:items", ITEM, "f:name"), ("f:items", ITEM, "f:more", "f:x"),
    }  # fmt: skip


def test_a_change_of_anothers_field_conflicts() -> None:
    """Nothing is changed; the same value is shared."""
    story = Story().apply("one", {"text": "x", "number": 1})
    with pytest.raises(ApiError) as refused:
        story.apply("two", {"text": "y", "number": 2})
    assert [cause["field"] for cause in refused.value.details["causes"]] == [".number", ".text"]
    assert str(refused.value) == 'Apply failed with 2 conflicts: conflicts with "one":\n- .number\n- .text'
    story.apply("two", {"text": "x"})
    assert story.has("one") == {("f:text",), ("f:number",)}
    assert story.has("two") == {("f:text",)}


def test_a_conflict_with_an_updater_names_version_and_subresource() -> None:
    """As the real one does."""
    story = Story().write("hand", {"number": 1}, "scale")
    with pytest.raises(ApiError, match='conflict with "hand" with subresource "scale" using v1'):
        story.apply("one", {"number": 2})


def test_force_takes_the_field_away() -> None:
    """And only that."""
    story = Story().apply("one", {"text": "x", "number": 1}).apply("two", {"text": "y"}, force=True)
    assert story.value == {"text": "y", "number": 1}
    assert story.has("one") == {("f:number",)}
    assert story.has("two") == {("f:text",)}


def test_who_has_nothing_left_is_gone() -> None:
    """From managedFields too."""
    story = Story().apply("one", {"text": "x"}).apply("two", {"text": "y"}, force=True)
    assert [entry["manager"] for entry in write_owners(story.owners)] == ["two"]


def test_an_update_takes_what_it_changes_from_whoever_had_it() -> None:
    """What it leaves as it was stays with its owner."""
    story = Story().apply("one", {"text": "x", "number": 1}).write("hand", {"text": "x", "number": 2})
    assert story.has("one") == {("f:text",)}
    assert story.has("hand", applies=False) == {("f:number",)}


def test_an_update_releases_what_it_takes_away() -> None:
    """Nobody owns what is not there."""
    story = Story().apply("one", {"text": "x", "number": 1}).write("hand", {"text": "x"})
    assert story.has("one") == {("f:text",)}
    assert story.has("hand", applies=False) == set()


def test_a_container_that_an_update_makes_is_its_own() -> None:
    """Which an apply of something inside does not conflict with."""
    story = Story().write("hand", {"inner": {"a": 1}})
    assert story.has("hand", applies=False) == {("f:inner",), ("f:inner", "f:a")}
    assert story.apply("one", {"inner": {"b": 2}}).value == {"inner": {"a": 1, "b": 2}}


def test_one_who_applies_and_updates_is_two() -> None:
    """As the operation is part of who it is."""
    story = Story().write("one", {"text": "x"})
    with pytest.raises(ApiError):
        story.apply("one", {"text": "y"})


def test_the_same_again_keeps_the_time() -> None:
    """So that it is no write."""
    story = Story().apply("one", {"text": "x"})
    first = write_owners(story.owners)
    assert write_owners(story.apply("one", {"text": "x"}).owners) == first
    assert write_owners(story.apply("one", {"text": "y"}).owners) != first


def test_what_says_which_object_it_is_has_no_owner() -> None:
    """Names, and what the server writes."""
    value = {
        "free": {"a": 1},
        "apiVersion": "v1",
        "kind": "K",
        "metadata": {"name": "n", "labels": {"a": "b"}},
    }
    shape = type(WHOLE)({"x-kubernetes-preserve-unknown-fields": True, "type": "object"})
    _, owners = apply(shape, {}, value, {}, Manager("one", True, "v1"), "1")
    (held,) = owners.values()
    assert held.fields == {
        ("f:free",),
        ("f:free", "f:a"),
        ("f:metadata", "f:labels"),
        ("f:metadata", "f:labels", "f:a"),
    }


def test_the_written_form_comes_back() -> None:
    """managedFields: appliers first, then by time."""
    story = Story().write("hand", {"number": 1}).apply("two", {"tags": ["t"]}).apply("one", {"text": "x"})
    entries = write_owners(story.owners)
    assert [(entry["manager"], entry["operation"]) for entry in entries] == [
        ("two", "Apply"), ("one", "Apply"), ("hand", "Update"),
    ]  # fmt: skip
    assert entries[0]["fieldsV1"] == {"f:tags": {'v:"t"': {}}}
    assert read_owners(entries) == story.owners

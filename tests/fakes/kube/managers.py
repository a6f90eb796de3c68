"""Who owns which fields: metadata.managedFields, and what an apply or an update makes of it. Pure.

 live, applied, owners ──apply──▶ object, owners      live, new, owners ──update──▶ owners

An update takes the fields that it changes, whoever had them. An apply states a whole intent: it conflicts where it
would change another's field, and what it stated last time and no longer does goes, unless somebody else owns it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.fakes.kube.errors import ApiError, Cause, apply_conflict
from tests.fakes.kube.fields import Fields, Path, compare, field_set, from_v1, path_text, to_v1, with_parents
from tests.fakes.kube.merging import merge, without
from tests.fakes.kube.shapes import Shape

# Nobody owns what the server itself writes, or what says which object it is.
_NOT_OWNED: Fields = frozenset(
    [("f:apiVersion",), ("f:kind",), ("f:metadata",)]
    + [
        ("f:metadata", f"f:{name}")
        for name in ("name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "managedFields",
                     "resourceVersion")
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Manager:
    """Who writes, and how: each of these has a set of fields of its own."""

    name: str
    applies: bool
    api_version: str
    subresource: str = ""

    @property
    def identity(self) -> tuple[str, bool, str, str]:
        """An applier stays itself from version to version; an updater is one per version."""
        return (self.name, self.applies, "" if self.applies else self.api_version, self.subresource)

    @property
    def text(self) -> str:
        """As in a conflict."""
        words = f'"{self.name}"' + (f' with subresource "{self.subresource}"' if self.subresource else "")
        return words if self.applies else f"{words} using {self.api_version}"


@dataclass(frozen=True, slots=True)
class Held:
    """A manager's fields, and when it last changed the set or wrote one of them."""

    manager: Manager
    fields: Fields
    time: str


Owners = dict[tuple[str, bool, str, str], Held]


def read_owners(entries: list[dict[str, Any]]) -> Owners:
    """From metadata.managedFields."""
    found: Owners = {}
    for entry in entries:
        manager = Manager(
            entry.get("manager", ""),
            entry.get("operation") == "Apply",
            entry.get("apiVersion", ""),
            entry.get("subresource", ""),
        )
        fields = frozenset(from_v1(entry.get("fieldsV1", {})))
        found[manager.identity] = Held(manager, fields, entry.get("time", ""))
    return found


def write_owners(owners: Owners) -> list[dict[str, Any]]:
    """As metadata.managedFields: appliers first, then by time."""
    rank = sorted(owners.values(), key=lambda held: (not held.manager.applies, held.time, held.manager.name))
    return [_entry(held) for held in rank]


def _entry(held: Held) -> dict[str, Any]:
    manager = held.manager
    entry = {
        "manager": manager.name,
        "operation": "Apply" if manager.applies else "Update",
        "apiVersion": manager.api_version,
        "time": held.time,
        "fieldsType": "FieldsV1",
        "fieldsV1": to_v1(held.fields),
    }
    return entry | ({"subresource": manager.subresource} if manager.subresource else {})


def update(shape: Shape, live: Any, new: Any, owners: Owners, manager: Manager, now: str) -> Owners:
    """Owners after a write that is no apply."""
    changes = compare(shape, live, new)
    taken = frozenset(changes.added | changes.modified) - _NOT_OWNED
    after = _released(owners, taken | frozenset(changes.removed))
    mine = owners.get(manager.identity)
    before = mine.fields if mine else frozenset()
    fields = before - changes.removed | taken
    if fields:
        time = mine.time if mine and fields == before and not taken else now
        after[manager.identity] = Held(manager, fields, time)
    return after


def apply(
    shape: Shape,
    live: dict[str, Any],
    applied: dict[str, Any],
    owners: Owners,
    manager: Manager,
    now: str,
    *,
    force: bool = False,
) -> tuple[dict[str, Any], Owners]:
    """The object and its owners after an apply. ApiError 409 with its causes unless `force`."""
    stated = field_set(shape, applied) - _NOT_OWNED
    last = owners.get(manager.identity)
    others = {identity: held for identity, held in owners.items() if identity != manager.identity}
    new = merge(shape, live, applied)
    if last:
        new = _less_given_up(shape, new, last.fields, [stated, *(held.fields for held in others.values())])
    changes = compare(shape, live, new)
    written = frozenset(changes.added | changes.modified)
    conflicts = {held.manager: held.fields & written for held in others.values() if held.fields & written}
    if conflicts and not force:
        raise _conflict(conflicts)
    after = _released(others, written | frozenset(changes.removed))
    if stated:
        same = last is not None and last.fields == stated and last.manager == manager
        time = last.time if same and last and new == live else now
        after[manager.identity] = Held(manager, stated, time)
    return new, after


def _less_given_up(shape: Shape, merged: Any, last: Fields, owned: list[Fields]) -> Any:
    """Without what the manager stated last time and nobody states now."""
    held = with_parents(shape, frozenset().union(*owned))
    doomed = with_parents(shape, last) - held
    return without(shape, merged, doomed) if doomed else merged


def _released(owners: Owners, fields: Fields) -> Owners:
    """All of them less those fields; who has none left is gone."""
    found: Owners = {}
    for identity, held in owners.items():
        left = held.fields - fields
        if left:
            found[identity] = held if left == held.fields else Held(held.manager, left, held.time)
    return found


def _conflict(conflicts: Mapping[Manager, frozenset[Path]]) -> ApiError:
    each = [
        (manager, path) for manager in sorted(conflicts, key=lambda manager: manager.text)
        for path in sorted(conflicts[manager])
    ]  # fmt: skip
    causes = [
        Cause("FieldManagerConflict", f"conflict with {manager.text}", path_text(path))
        for manager, path in each
    ]
    if len(each) == 1:
        listed = f"1 conflict: {causes[0].message}: {causes[0].path}"
    else:
        lines = []
        for manager in sorted(conflicts, key=lambda manager: manager.text):
            lines.append(f"conflicts with {manager.text}:")
            lines += [f"- {path_text(path)}" for path in sorted(conflicts[manager])]
        listed = f"{len(each)} conflicts: " + "\n".join(lines)
    return apply_conflict(causes, f"Apply failed with {listed}")

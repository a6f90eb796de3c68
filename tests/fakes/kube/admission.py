"""What is filled into an object, and whether it may be stored: one place for built-in and custom types. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.fakes.kube import builtin_defaults, builtin_rules, metadata, rules, schema
from tests.fakes.kube.errors import Cause, invalid
from tests.fakes.kube.resources import Resource

Object = dict[str, Any]

_UNCHECKED = Cause(
    "FieldValueInvalid",
    'Invalid value: "null": some validation rules were not checked because the object was invalid; '
    "correct the existing errors to complete validation",
    "<nil>",
)


def prepared(resource: Resource, obj: Object, old: Object | None) -> Object:
    """With defaults."""
    if resource.is_custom:
        found: Object = schema.defaulted(resource.shape, obj)
        return found
    return builtin_defaults.defaulted(resource, obj, old)


def started(resource: Resource, obj: Object) -> Object:
    """A new object with the status that it begins with."""
    return builtin_defaults.started(resource, obj)


def admit(resource: Resource, obj: Object, old: Object | None) -> None:
    """ApiError 422 with all that is wrong."""
    causes = list(_causes(resource, obj, old))
    if causes:
        raise invalid(resource.group, resource.kind, obj["metadata"].get("name", ""), causes)


def _causes(resource: Resource, obj: Object, old: Object | None) -> Iterator[Cause]:
    yield from metadata.violations(resource, obj, old)
    before = schema.ABSENT if old is None else old
    if not resource.is_custom:
        yield from builtin_rules.violations(resource, obj, old)
        return
    found = list(_custom_violations(resource, obj, before))
    yield from found
    if not found:
        yield from rules.broken_rules(resource.shape, obj, before)
    elif rules.has_rules(resource.shape):
        yield _UNCHECKED


def _custom_violations(resource: Resource, obj: Object, before: Any) -> Iterator[Cause]:
    """Everything but metadata, which is not the CRD's to describe."""
    apart = {name: value for name, value in obj.items() if name != "metadata"}
    old = (
        before
        if before is schema.ABSENT
        else {name: value for name, value in before.items() if name != "metadata"}
    )
    yield from schema.violations(resource.shape, apart, old)

"""What every kind has: group and version, metadata, conditions, CEL rules as schema extras. Knows no kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from services.common.errors import InvalidInput
from services.common.spec.base import Spec

GROUP = "trimtab.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

Cidr = Annotated[str, StringConstraints(max_length=64, pattern=r"^[0-9a-fA-F.:]+/[0-9]{1,3}$")]
MOST_MESSAGE = 8192
"""Characters of a condition's message."""
Text = Annotated[str, StringConstraints(max_length=1024)]
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
]
"""Of another object in the namespace."""
Label = Annotated[
    str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
]


def rules(*pairs: tuple[str, str], fields: Mapping[str, str] | None = None) -> dict[str, Any]:
    """CEL rules for `json_schema_extra`: (expression, message). `fields`: message to the field it is about."""
    listed = []
    for expression, message in pairs:
        entry = {"rule": expression, "message": message}
        path = (fields or {}).get(message)
        listed.append(entry | ({"fieldPath": path} if path else {}))
    return {"x-kubernetes-validations": listed}


def immutable(what: str) -> tuple[str, str]:
    """The rule that a value stays as it was created."""
    return "self == oldSelf", f"{what} cannot change once the run exists: make another run"


def map_of(*keys: str) -> dict[str, Any]:
    """A list whose entries are told apart by these fields, so that two owners can each keep their own."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}


class StatusModel(BaseModel):
    """Status is written by the operator; a field of a newer one is kept out, not refused."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Condition(StatusModel):
    """One aspect of the present state; as in metav1.Condition."""

    type: str = Field(
        max_length=316, pattern=r"^[A-Za-z]([A-Za-z0-9]*[A-Za-z0-9])?$", description="Which aspect."
    )
    status: Literal["True", "False", "Unknown"]
    reason: str = Field(
        min_length=1,
        max_length=1024,
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        description="One word.",
    )
    message: str = Field("", max_length=MOST_MESSAGE, description="For a person.")
    last_transition_time: str = Field(
        max_length=64, json_schema_extra={"format": "date-time"}, description="When the status last changed."
    )
    observed_generation: int = Field(0, ge=0, description="Generation of the spec that was looked at.")


class ObjectMeta(BaseModel):
    """The part of metadata that is read."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True)

    name: str = Field(min_length=1)
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    deletion_timestamp: str | None = None


class SecretKey(Spec):
    """One key of a Secret in the run's namespace."""

    name: Name = Field(description="The Secret.")
    key: str = Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$", description="The key in it.")


Kind = TypeVar("Kind", bound=BaseModel)


def read_object(kind: type[Kind], data: Mapping[str, Any]) -> Kind:
    """The object as a model. Raises InvalidInput that names the first wrong field and what was expected."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        violations = {
            ".".join(str(part) for part in problem["loc"]) or "object": str(problem["msg"])
            for problem in error.errors(include_url=False, include_input=False)
        }
        field, expected = next(iter(violations.items()))
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        raise InvalidInput(f"{field}: {expected[:1].lower()}{expected[1:]}{more}", violations) from None

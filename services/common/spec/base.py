"""The base of every configuration model: strict about names, read-only, camelCase on Kubernetes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Spec(BaseModel):
    """Unknown fields are errors; snake_case in TOML, camelCase by alias in the CRD."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )


def unsaid(schema: dict[str, Any]) -> None:
    """A default that the API server must not fill in: a preset could not tell it from what a person wrote."""
    del schema["default"]

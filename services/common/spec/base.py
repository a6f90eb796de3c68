"""The base of every configuration model: strict about names, read-only, camelCase on Kubernetes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Spec(BaseModel):
    """Unknown fields are errors; snake_case in TOML, camelCase by alias in the CRD."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )

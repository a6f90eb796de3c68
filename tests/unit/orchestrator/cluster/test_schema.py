"""From pydantic to a structural schema, on small models."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from orchestrator.cluster.schema import structural_schema, with_defaults
from services.common.spec.base import Spec
from tests.unit.orchestrator.cluster.admission import broken_rules
from tests.unit.orchestrator.cluster.structural_rules import problems


class Ppo(Spec):
    """One algorithm."""

    kind: Literal["ppo"] = "ppo"
    epochs: int = Field(4, ge=1)
    clip_ratio: float = Field(0.2, gt=0)


class Grpo(Spec):
    """Another."""

    kind: Literal["grpo"] = "grpo"
    epochs: int = Field(1, ge=1)
    groups: int = Field(8, gt=1)


class Run(Spec):
    """With a union."""

    algorithm: Annotated[Ppo | Grpo, Field(discriminator="kind")] = Ppo()


def test_alternatives_become_one_object() -> None:
    """Models told apart by a kind are one object: all properties, the kind's values, a rule for what is not shared."""
    schema = structural_schema(Run)
    assert list(problems(schema)) == []
    algorithm = schema["properties"]["algorithm"]
    assert algorithm["properties"]["kind"]["enum"] == ["ppo", "grpo"]
    assert algorithm["properties"]["clipRatio"]["type"] == "number"
    assert algorithm["properties"]["groups"]["minimum"] == 2
    assert "default" not in algorithm["properties"]["epochs"]
    assert list(broken_rules(algorithm, {"kind": "grpo", "groups": 4})) == []
    assert list(broken_rules(algorithm, {"kind": "grpo", "clipRatio": 0.1})) == [
        ": clipRatio is for kind ppo"
    ]


@pytest.mark.parametrize(
    "given", [{}, {"algorithm": {"kind": "grpo"}}, {"algorithm": {"kind": "ppo", "epochs": 2}}]
)
def test_defaults_of_alternatives_are_left_to_the_model(given: dict[str, dict[str, object]]) -> None:
    """What the server fills in reads as the same run, whichever kind is given."""
    assert Run.model_validate(with_defaults(structural_schema(Run), given)) == Run.model_validate(given)


def test_alternatives_without_a_kind_are_refused() -> None:
    """Where nothing tells two models apart there is no structural schema."""

    class Either(Spec):
        part: Ppo | WithoutKind

    with pytest.raises(TypeError, match="tells the alternatives apart"):
        structural_schema(Either)


class WithoutKind(Spec):
    """No kind."""

    size: int = 1


def test_a_map_without_a_type_is_refused() -> None:
    """Unknown fields are for overlays that say so, not for whatever a model forgot to type."""

    class Open(BaseModel):
        anything: dict[str, object] = Field(default_factory=dict)

    with pytest.raises(TypeError, match="anything"):
        structural_schema(Open)

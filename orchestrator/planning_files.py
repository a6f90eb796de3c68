"""Reads what `trimtab plan` is given: a run or reward model in YAML, what was observed in JSON. Knows no planning.

Of a run's file it takes what concerns scaling, camelCase as in a TrainingRun (the keys may also stand without
`spec:` around them); everything else is left to whoever applies the run:

    spec:
      suspend: false
      rollout: {batchGroups: 64, maxStaleness: 6}
      pools: {a100: 24}
      roles:
        policy:    {pool: a100, price: 2, slots: 6, startupSeconds: 240, scaling: {mode: Auto, min: 1, max: 20}}
        reference: {slots: 4, scaling: {mode: Static, replicas: 3}}
        reward:    {price: 0.5, slots: 4, scaling: {mode: External}}
        learner:   {price: 8, stepSeconds: 60}

Of a RewardModel: metadata.name, spec.replicas, spec.scaling, spec.startupSeconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from orchestrator.planning.observed import Observed, ServiceObserved
from orchestrator.planning.serving import ServiceSpec
from orchestrator.planning.spec import Auto, External, PipelineSpec, RoleSpec, Scaling, Static
from services.common.errors import ConfigError, InvalidInput

LEARNER = "learner"
Seen = TypeVar("Seen", Observed, ServiceObserved)


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class _Static(_Part):
    mode: Literal["Static"]
    replicas: int = Field(ge=0)


class _External(_Part):
    mode: Literal["External"]


class _Auto(_Part):
    mode: Literal["Auto"]
    minimum: int = Field(1, ge=0, alias="min")
    maximum: int = Field(100, ge=0, alias="max")


class _Role(_Part):
    scaling: Annotated[_Static | _External | _Auto, Field(discriminator="mode")] = _Auto(mode="Auto")
    price: float = Field(1.0, ge=0)
    slots: int = Field(1, ge=1)
    pool: str = ""
    startup_seconds: float = Field(240.0, ge=0)
    seconds_per_group: float | None = Field(None, gt=0)
    step_seconds: float | None = Field(None, gt=0)


class _Rollout(_Part):
    batch_groups: int = Field(32, ge=1)
    max_staleness: int = Field(0, ge=0)


class _Run(_Part):
    suspend: bool = False
    rollout: _Rollout = _Rollout()
    pools: dict[str, int] = Field(default_factory=dict)
    roles: dict[str, _Role] = Field(min_length=1)


class _ServiceScaling(_Part):
    mode: Literal["Static", "External", "Auto"] = "Static"
    minimum: int = Field(1, ge=0, alias="min")
    maximum: int = Field(100, ge=0, alias="max")
    pool_limit: int | None = Field(None, ge=0)


class _Service(_Part):
    replicas: int = Field(1, ge=0)
    scaling: _ServiceScaling = _ServiceScaling()
    startup_seconds: float = Field(240.0, ge=0)


def read_plan(path: Path) -> PipelineSpec | ServiceSpec:
    """A run's scaling, or a reward model's, by its kind. Raises ConfigError, one line, with file and field."""
    found = _document(path)
    try:
        if found.get("kind") == "RewardModel":
            name = str((found.get("metadata") or {}).get("name", "reward"))
            return _service(name, _Service.model_validate(found.get("spec") or {}))
        return _spec(_Run.model_validate(found.get("spec", found)))
    except (ValidationError, InvalidInput) as error:
        raise ConfigError(f"{path}: {_first(error)}") from error


def read_observed(path: Path) -> Observed:
    """What was observed of a run, in the fields of `orchestrator.planning.observed`. Raises ConfigError, one line."""
    return _observed(path, TypeAdapter(Observed))


def read_service_observed(path: Path) -> ServiceObserved:
    """What was observed of a reward model, in the same place. Raises ConfigError, one line."""
    return _observed(path, TypeAdapter(ServiceObserved))


def _document(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a TrainingRun or its spec, or a RewardModel")
    return found


def _observed(path: Path, adapter: TypeAdapter[Seen]) -> Seen:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not JSON in UTF-8") from error
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error)}") from error


def _service(name: str, model: _Service) -> ServiceSpec:
    part = model.scaling
    scaling: Scaling = Auto(part.minimum, part.maximum)
    if part.mode != "Auto":
        scaling = External() if part.mode == "External" else Static(model.replicas)
    return ServiceSpec(
        name=name, scaling=scaling, pool_limit=part.pool_limit, startup_seconds=model.startup_seconds
    )


def _spec(run: _Run) -> PipelineSpec:
    learner = run.roles.get(LEARNER, _Role())
    return PipelineSpec(
        roles=tuple(_role(name, role) for name, role in run.roles.items() if name != LEARNER),
        batch_groups=run.rollout.batch_groups,
        max_staleness=run.rollout.max_staleness,
        learner_price=learner.price,
        step_seconds=learner.step_seconds,
        pools=run.pools,
        suspended=run.suspend,
    )


def _role(name: str, role: _Role) -> RoleSpec:
    return RoleSpec(
        name=name,
        scaling=_scaling(role.scaling),
        price=role.price,
        slots=role.slots,
        pool=role.pool,
        startup_seconds=role.startup_seconds,
        seconds_per_group=role.seconds_per_group,
    )


def _scaling(part: _Static | _External | _Auto) -> Scaling:
    if isinstance(part, _Static):
        return Static(part.replicas)
    if isinstance(part, _External):
        return External()
    return Auto(part.minimum, part.maximum)


def _first(error: ValidationError | InvalidInput) -> str:
    if isinstance(error, InvalidInput):
        return str(error)
    one = error.errors()[0]
    where = ".".join(str(part) for part in one["loc"])
    return f"{where}: {one['msg']}" if where else one["msg"]

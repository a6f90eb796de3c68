"""Reads what `trimtab plan` is given: a run or reward model in YAML, what was observed in JSON. Knows no planning.

A file with `kind: TrainingRun` or `RewardModel` is read as the operator reads it, with its defaults and its strictness.
Without `kind` it is a short form that holds what concerns scaling alone, so that a pipeline can be tried before there
is a run:

    suspend: false
    rollout: {batchGroups: 64, maxStaleness: 6}
    pools: {a100: 24}
    roles:
      policy:    {pool: a100, price: 2, slots: 6, startupSeconds: 240, scaling: {mode: Auto, min: 1, max: 20}}
      reference: {slots: 4, secondsPerGroup: 8, scaling: {mode: Static, replicas: 3}}
      reward:    {price: 0.5, slots: 4, scaling: {mode: External}}
      learner:   {price: 8, stepSeconds: 60}

What was observed has the fields of `orchestrator.planning.observed`. In both a name that nobody knows is an error:
a field that is left out silently would give another plan.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from orchestrator.planning.observed import Observed, ServiceObserved
from orchestrator.planning.serving import ServiceSpec
from orchestrator.planning.spec import Auto, External, PipelineSpec, RoleSpec, Scaling, Static
from services.common.errors import ConfigError, InvalidInput
from services.common.spec.load import read_text

LEARNER = "learner"
Seen = TypeVar("Seen", Observed, ServiceObserved)


class _Part(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, allow_inf_nan=False
    )


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
    pools: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    roles: dict[str, _Role]


def read_plan(path: Path) -> PipelineSpec | ServiceSpec:
    """A run's scaling, or a reward model's, by its kind. Raises ConfigError, one line, with file and field."""
    try:
        found = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a TrainingRun or its roles, or a RewardModel")
    if "kind" in found:
        return _of_kind(path)
    try:
        return _spec(_Run.model_validate(found))
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error)}") from error
    except InvalidInput as error:
        raise ConfigError(f"{path}: {error}") from error


def read_observed(path: Path, run: PipelineSpec) -> Observed:
    """What was observed of `run`. Raises ConfigError, one line, with file and field."""
    seen = _observed(path, TypeAdapter(Observed))
    names = [role.name for role in run.roles]
    stranger = next((name for name in seen.roles if name not in names), None)
    if stranger is not None:
        raise ConfigError(f"{path}: roles.{stranger}: the run has no such role; it has {', '.join(names)}")
    return seen


def read_service_observed(path: Path) -> ServiceObserved:
    """What was observed of a reward model. Raises ConfigError, one line, with file and field."""
    return _observed(path, TypeAdapter(ServiceObserved))


def _observed(path: Path, adapter: TypeAdapter[Seen]) -> Seen:
    try:
        text = read_text(path)
        seen = adapter.validate_json(text)
        given = TypeAdapter(Any).validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error)}") from error
    if wrong := _unknown(given, adapter.dump_python(seen, mode="json")) or _impossible(given):
        raise ConfigError(f"{path}: {wrong}")
    return seen


def _of_kind(path: Path) -> PipelineSpec | ServiceSpec:
    # The operator's kinds are many models: who gives the short form does not wait for them.
    from orchestrator.cluster.documents import read_objects
    from orchestrator.cluster.kinds import TrainingRun
    from orchestrator.cluster.pipeline import pipeline_spec, service_spec

    found = read_objects(path)
    if len(found) != 1:
        raise ConfigError(f"{path}: expected one TrainingRun or RewardModel, found {len(found)}")
    [one] = found
    try:
        return pipeline_spec(one) if isinstance(one, TrainingRun) else service_spec(one)
    except InvalidInput as error:
        raise ConfigError(f"{path}: {error}") from error


def _unknown(given: object, read: object, where: str = "") -> str:
    """The first name in `given` that did not reach `read`, as a sentence; empty: all did."""
    if isinstance(given, dict) and isinstance(read, dict):
        for name, value in given.items():
            if name not in read:
                return f"{where}{name}: no such field; there are {', '.join(read)}"
            if wrong := _unknown(value, read[name], f"{where}{name}."):
                return wrong
    if isinstance(given, list) and isinstance(read, list):
        for index, pair in enumerate(zip(given, read, strict=True)):
            if wrong := _unknown(*pair, f"{where}{index}."):
                return wrong
    return ""


def _impossible(given: object, where: str = "") -> str:
    """The first number that is negative or not finite, as a sentence: counts, seconds and levels are neither."""
    if isinstance(given, float | int) and not isinstance(given, bool):
        possible = math.isfinite(given) and given >= 0
        return "" if possible else f"{where.rstrip('.')}: expected a number of at least 0, found {given}"
    pairs = given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, list) else ()
    return next((wrong for name, one in pairs if (wrong := _impossible(one, f"{where}{name}."))), "")


def _spec(run: _Run) -> PipelineSpec:
    if not run.roles.keys() - {LEARNER}:
        raise InvalidInput("roles: expected at least one beside the learner")
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


def _first(error: ValidationError) -> str:
    """Field and what was expected, in words of the file and not of Python."""
    one = error.errors()[0]
    given = one["input"]
    told = {
        "extra_forbidden": "no such field",
        "missing": "is missing",
        "union_tag_invalid": "expected mode Auto, Static or External",
        "union_tag_not_found": "mode is missing: Auto, Static or External",
        "model_type": "expected fields in braces or below it",
        "dict_type": "expected fields in braces or below it",
    }.get(one["type"])
    if told is None:
        told = one["msg"].replace("Input should be ", "expected ").replace(" greater", " a number greater")
        if isinstance(given, str | int | float) and one["type"] != "json_invalid":
            told += f", found {given!r}"
    where = ".".join(str(part) for part in one["loc"])
    return f"{where}: {told}" if where else told

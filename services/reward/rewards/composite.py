"""A weighted sum of other sources. Owns how values become one; knows not what its components are.

TRL's GRPOTrainer calls the two ways `multi_objective_aggregation`; there the means and deviations are those of the
batch, here they are fixed numbers of the configuration, so that a row's score depends on nothing but the row.

    sum_then_normalize (GRPO)                      (sum_i w_i clip_i(v_i) - mean) / deviation
    normalize_then_sum (GDPO, arXiv 2601.05242)    sum_i w_i (clip_i(v_i) - mean_i) / deviation_i

and then the composite's own clip.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Literal

import structlog

from services.common.errors import Expired, InvalidInput, ServiceError, TrimtabError, Unavailable
from services.reward.config import CompositeSpec
from services.reward.futures import chained, gathered
from services.reward.rewards.base import (
    Caller,
    InputKind,
    NotScored,
    RewardSource,
    ScoreOutcome,
    ScoreRow,
    SourceDescription,
    outcome_of,
)

_log = structlog.get_logger(__name__)
_Part = Future[list[ScoreOutcome]]


class CompositeReward:
    """Scores by `components`, which are not its own to close. Immutable: the table makes another on every swap.

    A row has an error where a component has one, of the same status and with the component's name; its `components`
    are then those that did score. All components are asked at once.
    """

    kind: Literal["composite"] = "composite"

    def __init__(self, spec: CompositeSpec, components: Mapping[str, RewardSource]) -> None:
        check_composite(spec)
        self._spec = spec
        self._names = [component.model for component in spec.components]
        self._sources = {name: components[name] for name in self._names if name in components}

    @property
    def needs(self) -> frozenset[str]:
        """Names of its components."""
        return frozenset(self._names)

    def with_components(self, components: Mapping[str, RewardSource]) -> CompositeReward:
        """The same composition of these sources."""
        return CompositeReward(self._spec, components)

    @property
    def digest(self) -> str:
        """BLAKE2b-128 over the configuration and its components' digests."""
        return self._digest_of({name: source.digest for name, source in self._sources.items()})

    def describe(self) -> SourceDescription:
        """Reads what its most demanding component reads; its limit is the shortest."""
        parts = [source.describe() for source in self._sources.values()]
        order: tuple[InputKind, ...] = ("messages", "text", "token_ids")
        limits = [part.max_tokens for part in parts if part.max_tokens]
        return SourceDescription(
            input_kind=min((part.input_kind for part in parts), key=order.index, default="text"),
            truncates=next((part.truncates for part in parts if part.truncates != "never"), "never"),
            max_tokens=min(limits, default=0),
        )

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        """See RewardSource.submit. What a component raises at once, Overloaded for example, is raised here too."""
        missing = self.needs - self._sources.keys()
        if missing:
            raise Unavailable(f"component {min(missing)} is not loaded")
        parts: list[_Part] = []
        try:
            for name in self._names:
                parts.append(self._sources[name].submit(rows, caller))  # noqa: PERF401 - parts are needed below
        except BaseException:
            for part in parts:
                part.cancel()
            raise
        count = len(rows)
        return chained(gathered(parts), lambda ended: self._combined(ended, count))

    def close(self) -> None:
        """Nothing: the components are somebody else's."""

    def _combined(self, parts: Sequence[_Part], count: int) -> list[ScoreOutcome]:
        columns = [_outcomes(name, part, count) for name, part in zip(self._names, parts, strict=True)]
        return [self._row([column[row] for column in columns]) for row in range(count)]

    def _row(self, outcomes: Sequence[ScoreOutcome]) -> ScoreOutcome:
        named = dict(zip(self._names, outcomes, strict=True))
        values = {name: each.value for name, each in named.items() if each.value is not None}
        kept = [name for name, each in named.items() if not self._skipped(each)]
        error = next((_named(name, e) for name in kept or named if (e := named[name].error)), None)
        if error is not None or len(values) < len(kept):
            whole = ScoreOutcome(error=error or ServiceError("a component gave no score"))
        else:
            whole = outcome_of(aggregate(_only(self._spec, kept), list(values.values())))
        return replace(
            whole,
            components=values,
            truncated_tokens=max(each.truncated_tokens for each in outcomes),
            digest=self._row_digest(named),
        )

    def _skipped(self, outcome: ScoreOutcome) -> bool:
        return self._spec.absent == "skip" and isinstance(outcome.error, NotScored)

    def _row_digest(self, outcomes: Mapping[str, ScoreOutcome]) -> str:
        """Empty where no component says other than what it says of itself."""
        if not any(each.digest for each in outcomes.values()):
            return ""
        return self._digest_of(
            {name: each.digest or self._sources[name].digest for name, each in outcomes.items()}
        )

    def _digest_of(self, digests: Mapping[str, str]) -> str:
        content = ["composite", 1, self._spec.model_dump(mode="json"), dict(digests)]
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _only(spec: CompositeSpec, names: Sequence[str]) -> CompositeSpec:
    """The composite without the components that have no score for a row; weights stay, as in TRL."""
    if len(names) == len(spec.components):
        return spec
    left = tuple(part for part in spec.components if part.model in names)
    return spec.model_copy(update={"components": left})


def aggregate(spec: CompositeSpec, values: Sequence[float]) -> float:
    """One value of the components' raw ones, in the order of the configuration."""
    clipped = [_clip(value, part.clip) for value, part in zip(values, spec.components, strict=True)]
    if spec.aggregation == "normalize_then_sum":
        whole = sum(
            part.weight * (value - part.mean) / part.deviation
            for value, part in zip(clipped, spec.components, strict=True)
        )
    else:
        total = sum(part.weight * value for value, part in zip(clipped, spec.components, strict=True))
        whole = (total - spec.mean) / spec.deviation
    return _clip(whole, spec.clip)


def check_composite(spec: CompositeSpec) -> None:
    """InvalidInput for what the configuration says twice or in vain."""
    names = [part.model for part in spec.components]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidInput(f"component {twice} is named twice", {"composite.components": "each model once"})
    if spec.clip is not None and not spec.clip[0] < spec.clip[1]:
        raise InvalidInput("composite.clip: expected low below high", {"composite.clip": "[low, high]"})
    own = spec.mean != 0 or spec.deviation != 1
    parts = any(part.mean != 0 or part.deviation != 1 for part in spec.components)
    if parts and spec.aggregation == "sum_then_normalize":
        raise InvalidInput(
            "sum_then_normalize takes mean and deviation of the composite, not of its components",
            {"composite.components": "no mean and no deviation"},
        )
    if own and spec.aggregation == "normalize_then_sum":
        raise InvalidInput(
            "normalize_then_sum takes mean and deviation of each component, not of the composite",
            {"composite": "no mean and no deviation"},
        )


def _clip(value: float, bounds: tuple[float, float] | None) -> float:
    return value if bounds is None else min(max(value, bounds[0]), bounds[1])


def _outcomes(name: str, part: _Part, count: int) -> list[ScoreOutcome]:
    """A component's outcomes; what ended it as a whole is the error of every row. Expired ends the call."""
    try:
        outcomes = part.result()
    except Expired:
        raise
    except TrimtabError as error:
        return [ScoreOutcome(error=error)] * count
    except CancelledError:
        return [ScoreOutcome(error=Unavailable("its work was cancelled"))] * count
    except Exception:
        _log.exception("a component failed", component=name)
        return [ScoreOutcome(error=ServiceError("it failed; the service's log says more"))] * count
    if len(outcomes) != count:
        return [ScoreOutcome(error=ServiceError(f"{len(outcomes)} scores for {count} rows"))] * count
    return outcomes


def _named(name: str, error: TrimtabError) -> TrimtabError:
    """The same error, with what else it carries, of a component."""
    other = copy.copy(error)
    other.args = (f"component {name}: {error}", *error.args[1:])
    return other

"""Another source's values, brought to mean 0 and deviation 1 over all that were scored so far (Welford's method).

    value = clip((raw - mean_n) / deviation_n)       n: the rows up to and with this call, as in trlX's RunningMoments

A row's value depends on what was scored before it, so two replicas would disagree: it is for one process that serves
one run, the configuration has to say so, and every score's digest covers the moments that made it. The moments begin
anew with the process and with a swap of what is normalised. Where the learner can normalise, let it: it keeps its
moments in its checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Literal

from services.common.errors import Unavailable
from services.reward.config import RunningSpec
from services.reward.futures import chained
from services.reward.rewards.base import (
    Caller,
    RewardSource,
    ScoreOutcome,
    ScoreRow,
    SourceDescription,
    outcome_of,
)


@dataclass(frozen=True, slots=True)
class Moments:
    """Of `count` values: their mean, and the sum of their squared distances from it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def with_values(self, values: Sequence[float]) -> Moments:
        """The moments of these values too."""
        count, mean, squares = self.count, self.mean, self.squares
        for value in values:
            count += 1
            distance = value - mean
            mean += distance / count
            squares += distance * (value - mean)
        return Moments(count, mean, squares)

    @property
    def deviation(self) -> float:
        """Population deviation; 1 as long as all values were the same."""
        return math.sqrt(self.squares / self.count) if self.squares > 0 else 1.0


class RunningReward:
    """Scores by one component, which is not its own to close. The table makes another when the component changes."""

    kind: Literal["running"] = "running"

    def __init__(
        self, spec: RunningSpec, component: RewardSource | None = None, moments: Moments = Moments()
    ) -> None:
        self._spec = spec
        self._component = component
        self._moments = moments
        self._lock = threading.Lock()

    @property
    def needs(self) -> frozenset[str]:
        """The name of what it normalises."""
        return frozenset([self._spec.model])

    def with_components(self, components: Mapping[str, RewardSource]) -> RunningReward:
        """The same over this source; a source of another digest begins with fresh moments."""
        component = components[self._spec.model]
        same = self._component is not None and self._component.digest == component.digest
        return RunningReward(self._spec, component, self._moments if same else Moments())

    @property
    def digest(self) -> str:
        """BLAKE2b-128 over configuration, the component's digest and the moments of now."""
        return self._digest_of(self._source().digest, self._moments)

    def describe(self) -> SourceDescription:
        """As the component; its gain and bias are inside the value that is normalised."""
        return replace(self._source().describe(), gain=1.0, bias=0.0)

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        """See RewardSource.submit. A row without a value moves no moments and keeps its error."""
        source = self._source()
        return chained(source.submit(rows, caller), lambda outcomes: self._normalised(source, outcomes))

    def close(self) -> None:
        """Nothing: the component is somebody else's."""

    def _normalised(self, source: RewardSource, outcomes: Sequence[ScoreOutcome]) -> list[ScoreOutcome]:
        values = [each.value for each in outcomes if each.value is not None]
        with self._lock:
            moments = self._moments = self._moments.with_values(values)
        return [self._row(source, each, moments) for each in outcomes]

    def _row(self, source: RewardSource, raw: ScoreOutcome, moments: Moments) -> ScoreOutcome:
        digest = self._digest_of(raw.digest or source.digest, moments)
        if raw.value is None:
            return replace(raw, digest=digest)
        low, high = -self._spec.clip, self._spec.clip
        value = min(max((raw.value - moments.mean) / moments.deviation, low), high)
        return replace(
            outcome_of(value, truncated_tokens=raw.truncated_tokens),
            components={self._spec.model: raw.value},
            digest=digest,
        )

    def _source(self) -> RewardSource:
        if self._component is None:
            raise Unavailable(f"component {self._spec.model} is not loaded")
        return self._component

    def _digest_of(self, component: str, moments: Moments) -> str:
        state = [moments.count, moments.mean, moments.squares]
        content = ["running", 1, self._spec.model_dump(mode="json"), component, state]
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()

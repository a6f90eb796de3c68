"""A shadow scores what its model has scored, and only metrics and logs hear of it. Never delays an answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import structlog
from prometheus_client import Counter, Histogram

from services.common.errors import Overloaded, TrimtabError
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow
from services.reward.scoring import RewardModels, Scored

COMPARED = Counter("trimtab_reward_shadow_rows", "Rows that a shadow scored too.", ["model", "shadow"])
SKIPPED = Counter(
    "trimtab_reward_shadow_skipped_rows", "Rows left out, the model or its shadow being busy.", ["model"]
)
DIFFERENCE = Histogram(
    "trimtab_reward_shadow_difference",
    "Score of the shadow minus score of the model.",
    ["model", "shadow"],
    buckets=(-10, -3, -1, -0.3, -0.1, -0.01, 0.01, 0.1, 0.3, 1, 3, 10),
)
# A client of its own: the fair turns of batching keep it from crowding out who waits for an answer.
_CALLER = Caller(client="shadow")
_log = structlog.get_logger(__name__)


class ShadowRunner:
    """Has at most one comparison under way behind the model's own work; what comes meanwhile is skipped."""

    def __init__(self, models: RewardModels) -> None:
        self._models = models
        self._busy = threading.Lock()

    def offer(self, scored: Scored, rows: Sequence[ScoreRow]) -> None:
        """Compare this batch some time, if its model has a shadow and none is being compared."""
        try:
            shadow = self._models.slot(scored.name).shadow
        except TrimtabError:
            return
        if not shadow:
            return
        if not self._busy.acquire(blocking=False):
            SKIPPED.labels(scored.name).inc(len(rows))
            return
        try:
            other = self._models.submit(shadow, rows, _CALLER)
        except TrimtabError as error:
            self._busy.release()
            _missed(scored, error)
            return
        other.add_done_callback(lambda ended: self._finished(shadow, scored, ended))

    def _finished(self, shadow: str, scored: Scored, ended: Future[Scored]) -> None:
        self._busy.release()
        error = None if ended.cancelled() else ended.exception()
        if error is not None:
            _missed(scored, error)
        elif not ended.cancelled():
            _compare(shadow, scored, ended.result())


def _missed(scored: Scored, error: BaseException) -> None:
    """A full shadow is what there is a count for; a warning a call would bury the log under load."""
    if isinstance(error, Overloaded):
        SKIPPED.labels(scored.name).inc(len(scored.outcomes))
    else:
        _log.warning("shadow failed", error=str(error))


def _compare(shadow: str, scored: Scored, other: Scored) -> None:
    differences = [
        second - first
        for first, second in zip(_values(scored.outcomes), _values(other.outcomes), strict=True)
        if first is not None and second is not None
    ]
    for difference in differences:
        DIFFERENCE.labels(scored.name, shadow).observe(difference)
    COMPARED.labels(scored.name, shadow).inc(len(scored.outcomes))
    _log.info(
        "shadow compared",
        model=scored.name,
        shadow=shadow,
        rows=len(scored.outcomes),
        mean_difference=sum(differences) / len(differences) if differences else None,
    )


def _values(outcomes: Sequence[ScoreOutcome]) -> list[float | None]:
    return [outcome.value for outcome in outcomes]

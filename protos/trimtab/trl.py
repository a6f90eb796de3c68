"""Rewards for TRL: `GRPOTrainer(reward_funcs=[trimtab.trl.reward("host:port", model="hh")], …)`.

Owns TRL's contract of a reward function (prompts, completions, data-set columns in; one number for each
completion out); how a batch is scored through outages is clients/scorers.py's. Imports nothing of TRL.

TRL reads None as "this reward does not apply to this row", and NaN as None. A row that cannot be scored is
neither: it raises RowError, unless `on_error="none"` asks for TRL's reading.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from trimtab.clients.reward import RowError, error_of, values_or_raise
from trimtab.clients.rows import column_text, score_input
from trimtab.clients.scorers import AsyncScorer, Scorer
from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2 as wire

OnError = Literal["raise", "none"]
# What TRL hands over beside the data set's columns: ids (the texts travel already) and its own machinery.
_NO_COLUMNS = frozenset(
    {"completion_ids", "prompt_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)
_log = logging.getLogger("trimtab")


class _Rows:
    """TRL's arguments to rows, and scores to TRL's rewards. Can be pickled."""

    def __init__(
        self, *, name: str, columns: Sequence[str] | None, on_error: OnError, rendered: bool
    ) -> None:
        if on_error not in ("raise", "none"):
            raise ValueError(f'on_error must be "raise" or "none", got {on_error!r}')
        self.name = name
        self._columns = None if columns is None else tuple(columns)
        self._on_error = on_error
        self._rendered = rendered
        self._unsendable: set[str] = set()

    def inputs(
        self, prompts: Sequence[Any], completions: Sequence[Any], given: Mapping[str, Any]
    ) -> list[wire.ScoreInput]:
        """One row for each completion. ValueError for lengths that differ or a column that is not there."""
        if len(prompts) != len(completions):
            raise ValueError(f"expected a prompt for each of {len(completions)} completions")
        columns = self._texts(given, len(completions))
        return [
            score_input(
                prompt,
                completion,
                {name: text for name, texts in columns.items() if (text := texts[index]) is not None},
                rendered=self._rendered,
            )
            for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]

    def _texts(self, given: Mapping[str, Any], count: int) -> dict[str, list[str | None]]:
        if self._columns is not None:
            missing = [name for name in self._columns if name not in given]
            if missing:
                raise ValueError(f"the data set has no column {', '.join(missing)}")
            return {name: _as_texts(given[name]) for name in self._columns}
        texts = {}
        for name, values in given.items():
            if name in _NO_COLUMNS or not isinstance(values, (list, tuple)) or len(values) != count:
                continue
            try:
                texts[name] = _as_texts(values)
            except (TypeError, ValueError) as error:
                self._leave_out(name, error)
        return texts

    def _leave_out(self, name: str, error: Exception) -> None:
        if name not in self._unsendable:
            self._unsendable.add(name)
            _log.warning("%s: column %s is not sent: %s", self.name, name, error)

    def rewards(self, scores: Sequence[common.Score]) -> list[float | None]:
        """A number for each row. RowError, or None, for a row that has none."""
        if self._on_error == "raise":
            return [*values_or_raise(scores)]
        errors = {index: error for index, score in enumerate(scores) if (error := error_of(score))}
        if errors:
            index, error = next(iter(errors.items()))
            _log.warning(
                "%s: %d of %d rows have no reward; %s",
                self.name,
                len(errors),
                len(scores),
                RowError(index, error),
            )
        return [None if index in errors else score.value for index, score in enumerate(scores)]


def _as_texts(values: Sequence[Any]) -> list[str | None]:
    return [None if value is None else column_text(value) for value in values]


class Reward:
    """What `reward` makes. Blocking."""

    def __init__(self, rows: _Rows, scorer: Scorer) -> None:
        self.__name__ = rows.name
        self._rows = rows
        self._scorer = scorer

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **given: Any
    ) -> list[float | None]:
        """TRL's reward function: prompts and completions as text or messages, columns by name."""
        return self._rows.rewards(self._scorer.score(self._rows.inputs(prompts, completions, given)))


async def _score(
    rows: _Rows,
    scorer: AsyncScorer,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    given: Mapping[str, Any],
) -> list[float | None]:
    return rows.rewards(await scorer.score(rows.inputs(prompts, completions, given)))


class AsyncReward:
    """What `async_reward` makes. TRL awaits several of them at once."""

    def __init__(self, rows: _Rows, scorer: AsyncScorer) -> None:
        self.__name__ = rows.name
        self._rows = rows
        self._scorer = scorer

    # TRL before 1.16 asks inspect.iscoroutinefunction alone, which takes an object for a function if it has
    # these (Cython's functions have); a closure would do as well, but cannot be pickled.
    __code__ = _score.__code__
    __defaults__ = None
    __kwdefaults__ = None

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **given: Any
    ) -> list[float | None]:
        """TRL's reward function as a coroutine."""
        return await _score(self._rows, self._scorer, prompts, completions, given)


def reward(
    target: str,
    *,
    model: str = "",
    name: str = "",
    columns: Sequence[str] | None = None,
    on_error: OnError = "raise",
    rendered: bool = False,
    **settings: Any,
) -> Reward:
    """A reward function for TRL's trainers.

    target: host:port or a gRPC target such as dns:///rewards:50053. model: which of the service's; "" where
    it has one only. name: in TRL's logs; the model's by default. columns: names of the data set's columns
    that travel, as text or JSON; None: all that JSON can say. on_error: "raise", or "none" for TRL's "does
    not apply". rendered: for prompts of plain text that have a chat template around them already; without it
    a chat model puts its own around a prompt. settings: patience_seconds (300), timeout_seconds of a call
    (300), max_rows of a call (256), calls_in_flight (4), and RewardClient's options.
    """
    return Reward(_rows(name, model, columns, on_error, rendered), Scorer(target, model=model, **settings))


def async_reward(
    target: str,
    *,
    model: str = "",
    name: str = "",
    columns: Sequence[str] | None = None,
    on_error: OnError = "raise",
    rendered: bool = False,
    **settings: Any,
) -> AsyncReward:
    """The same as a coroutine function, for several rewards that TRL then asks for at once."""
    return AsyncReward(
        _rows(name, model, columns, on_error, rendered), AsyncScorer(target, model=model, **settings)
    )


def _rows(name: str, model: str, columns: Sequence[str] | None, on_error: OnError, rendered: bool) -> _Rows:
    return _Rows(name=name or model or "trimtab", columns=columns, on_error=on_error, rendered=rendered)

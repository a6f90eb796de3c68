"""A reward function as a metric: its mean over completions. Runs in this process: the function is trusted."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from services.common.errors import InvalidInput
from services.common.metrics.base import Better, Floats, Need, Sample


class FunctionMetric:
    """Mean of package.module:function, called as the reward service does: prompts, completions, **columns."""

    better: Better = "higher"
    needs: frozenset[Need] = frozenset()

    def __init__(self, name: str) -> None:
        self.name = f"function:{name}"
        self._function = _load(name)

    def statistics(self, samples: Sequence[Sample]) -> Floats:
        """[samples, 2]: score and 1."""
        names = dict.fromkeys(name for sample in samples for name in sample.columns)
        columns = {name: [sample.columns.get(name) for sample in samples] for name in names}
        given = {
            **columns,
            "prompts": [sample.prompt for sample in samples],
            "completions": [sample.completion for sample in samples],
        }
        scores = np.asarray(self._function(**given), np.float64)
        if scores.shape != (len(samples),) or not np.isfinite(scores).all():
            raise InvalidInput(f"metric {self.name}: expected {len(samples)} finite numbers of the function")
        return np.stack([scores, np.ones(len(samples))], axis=1)

    def value(self, sums: Floats) -> Floats:
        """The mean."""
        return np.asarray(sums[..., 0] / sums[..., 1], np.float64)


def _load(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInput(f"metric function:{name}: expected package.module:function ({error})") from None
    if not callable(function):
        raise InvalidInput(f"metric function:{name}: expected a function, got {type(function).__name__}")
    return function  # type: ignore[no-any-return]

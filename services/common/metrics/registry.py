"""Owns how a metric is written as text and which there are; others come by entry points of group trimtab.metrics.

An entry point gives a callable without parameters that returns a Metric.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable

from services.common.errors import InvalidInput
from services.common.metrics.base import AdditiveMetric, Metric, PooledMetric
from services.common.metrics.functions import FunctionMetric
from services.common.metrics.overlap import Bleu, ChrF, Meteor, Rouge
from services.common.metrics.own import (
    Distinct,
    Length,
    Perplexity,
    Repetition,
    RuleMetric,
    Tokens,
    ToxicWords,
)

GROUP = "trimtab.metrics"
RULE_PREFIX = "rule:"
FUNCTION_PREFIX = "function:"
_MAKERS: dict[str, Callable[[], Metric]] = {
    "bleu": Bleu,
    "chrf": ChrF,
    "rouge1": lambda: Rouge("1"),
    "rouge2": lambda: Rouge("2"),
    "rougeL": lambda: Rouge("L"),
    "meteor": lambda: Meteor(synonyms=True),
    "meteor-stem": lambda: Meteor(synonyms=False),
    "perplexity": Perplexity,
    "length": Length,
    "tokens": Tokens,
    "toxic-words": ToxicWords,
    "sentiment": lambda: RuleMetric("sentiment", name="sentiment"),
}
_COUNTED: dict[str, Callable[[int], Metric]] = {"distinct": Distinct, "repetition": Repetition}
_WITH_COUNT = re.compile("(distinct|repetition)-([1-9])")


def metric_names() -> list[str]:
    """What `make_metric` knows; n is a digit; rule: takes any text rule, function: a reward function."""
    own = [*_MAKERS, "distinct-n", "repetition-n", "rule:<rule>", "function:<module:function>"]
    return sorted({*own, *(point.name for point in importlib.metadata.entry_points(group=GROUP))})


def make_metric(spec: str) -> Metric:
    """The metric that `spec` names, for example "bleu", "distinct-2", "rule:length:target=40".

    Raises InvalidInput, in one line, for a name that is not known or a library that is not there.
    """
    if spec in _MAKERS:
        return _MAKERS[spec]()
    if found := _WITH_COUNT.fullmatch(spec):
        return _COUNTED[found[1]](int(found[2]))
    if spec.startswith(RULE_PREFIX):
        return RuleMetric(spec.removeprefix(RULE_PREFIX))
    if spec.startswith(FUNCTION_PREFIX):
        return FunctionMetric(spec.removeprefix(FUNCTION_PREFIX))
    return _from_entry_point(spec)


def _from_entry_point(name: str) -> Metric:
    points = list(importlib.metadata.entry_points(group=GROUP, name=name))
    if not points:
        raise InvalidInput(f"metric {name!r} is not known; there are {', '.join(metric_names())}")
    if len(points) > 1:
        raise InvalidInput(f"{len(points)} distributions have an entry point {name} of group {GROUP}")
    metric = points[0].load()()
    if not isinstance(metric, AdditiveMetric | PooledMetric):
        raise InvalidInput(
            f"entry point {name} of group {GROUP}: expected a metric, got {type(metric).__name__}"
        )
    return metric

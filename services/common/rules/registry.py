"""Owns how a rule is written as text ("length:target=40") and which rules there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, TypeVar

from services.common.errors import InvalidInput
from services.common.rules.base import Rule
from services.common.rules.bleu import BleuRule, Metric
from services.common.rules.exact import ExactRule, Normalisation
from services.common.rules.json_text import JsonRule
from services.common.rules.length import LengthRule
from services.common.rules.numeric import NumericRule
from services.common.rules.regex import Mode, RegexRule
from services.common.rules.repetition import RepetitionRule
from services.common.rules.rouge import RougeRule, Variant
from services.common.rules.sentiment import SentimentRule
from services.common.rules.toxic_words import ToxicWordsRule

Options = dict[str, str]
Choice = TypeVar("Choice", bound=str)
_MODES: tuple[Mode, ...] = ("search", "fullmatch", "count")
_VARIANTS: tuple[Variant, ...] = ("L", "1", "2")
_METRICS: tuple[Metric, ...] = ("bleu", "chrf")
_NORMALISATIONS: tuple[Normalisation, ...] = ("text", "squad", "none")
# These may hold commas: they stand last and take all that is left.
_GREEDY = ("pattern", "schema")


def _whole(rule: str, options: Options, key: Literal["target", "n"]) -> int | None:
    text = options.pop(key, None)
    if text is None:
        return None
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise InvalidInput(
            f"rule {rule!r}: {key} is {text!r}; expected a whole number from 1 on", {key: "from 1 on"}
        )
    return int(text)


def _sentiment(_: str, __: Options) -> Rule:
    return SentimentRule()


def _length(rule: str, options: Options) -> Rule:
    return LengthRule(target=_whole(rule, options, "target"))


def _repetition(rule: str, options: Options) -> Rule:
    return RepetitionRule(n=_whole(rule, options, "n") or 2)


def _regex(rule: str, options: Options) -> Rule:
    pattern = options.pop("pattern", "")
    if not pattern:
        raise InvalidInput(
            f"rule {rule!r}: expected regex:pattern=<regular expression>", {"pattern": "not empty"}
        )
    return RegexRule(pattern=pattern, mode=_choice(rule, options, "mode", _MODES))


def _choice(rule: str, options: Options, key: str, choices: tuple[Choice, ...]) -> Choice:
    """One of `choices`; the first where it is left out."""
    text = options.pop(key, choices[0])
    for choice in choices:
        if text == choice:
            return choice
    listed = ", ".join(choices)
    raise InvalidInput(f"rule {rule!r}: {key} is {text!r}; expected one of {listed}", {key: listed})


def _column(rule: str, options: Options, default: str) -> str:
    name = options.pop("column", default)
    if not name:
        raise InvalidInput(f"rule {rule!r}: expected the name of a column", {"column": "not empty"})
    return name


def _rouge(rule: str, options: Options) -> Rule:
    variant = _choice(rule, options, "variant", _VARIANTS)
    return RougeRule(variant=variant, column=_column(rule, options, "reference"))


def _bleu(rule: str, options: Options) -> Rule:
    metric = _choice(rule, options, "metric", _METRICS)
    return BleuRule(metric=metric, column=_column(rule, options, "reference"))


def _exact(rule: str, options: Options) -> Rule:
    normalise = _choice(rule, options, "normalise", _NORMALISATIONS)
    return ExactRule(normalise=normalise, column=_column(rule, options, "answer"))


def _numeric(rule: str, options: Options) -> Rule:
    text = options.pop("tolerance", "1e-6")
    if not re.fullmatch(r"[0-9]*\.?[0-9]+(?:e-?[0-9]{1,2})?", text):
        raise InvalidInput(
            f"rule {rule!r}: tolerance is {text!r}; expected a number from 0 on", {"tolerance": "from 0 on"}
        )
    return NumericRule(tolerance=float(text), column=_column(rule, options, "answer"))


def _toxic_words(_: str, options: Options) -> Rule:
    return ToxicWordsRule(file=options.pop("file", ""))


def _json(_: str, options: Options) -> Rule:
    return JsonRule(schema=options.pop("schema", ""))


_MAKERS: dict[str, Callable[[str, Options], Rule]] = {
    "sentiment": _sentiment,
    "length": _length,
    "regex": _regex,
    "repetition": _repetition,
    "rouge": _rouge,
    "bleu": _bleu,
    "exact": _exact,
    "numeric": _numeric,
    "json": _json,
    "toxic_words": _toxic_words,
}


def rule_names() -> list[str]:
    """The kinds of rules that `make_rule` knows, sorted."""
    return sorted(_MAKERS)


def _options(spec: str, text: str) -> Options:
    options: Options = {}
    while text:
        key, equals, rest = text.partition("=")
        value, _, text = (rest, "", "") if key in _GREEDY else rest.partition(",")
        if not equals or not key or key in options:
            raise InvalidInput(
                f"rule {spec!r}: expected name:key=value,key=value, each key once", {"rule": "key=value"}
            )
        options[key] = value
    return options


def make_rule(spec: str) -> Rule:
    """The rule that `spec` describes.

    For example "sentiment", "length:target=40", "regex:mode=count,pattern=…", "repetition:n=2",
    "rouge:variant=L,column=reference", "bleu:metric=chrf", "exact:normalise=squad", "numeric:tolerance=0.01",
    "json:schema=answer.json".

    Raises InvalidInput, in one line that says what was expected.
    """
    name, _, text = spec.partition(":")
    maker = _MAKERS.get(name)
    if maker is None:
        raise InvalidInput(
            f"rule {name!r} is not known; there are {', '.join(rule_names())}", {"rule": "the name of a rule"}
        )
    options = _options(spec, text)
    rule = maker(spec, options)
    if options:
        raise InvalidInput(f"rule {spec!r}: {name} has no option {min(options)!r}", {"rule": "known options"})
    return rule

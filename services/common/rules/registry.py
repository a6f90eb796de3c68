"""Owns how a rule is written as text ("length:target=40") and which rules there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, get_args

from services.common.errors import InvalidInput
from services.common.rules.base import Rule
from services.common.rules.length import LengthRule
from services.common.rules.regex import Mode, RegexRule
from services.common.rules.repetition import RepetitionRule
from services.common.rules.sentiment import SentimentRule

Options = dict[str, str]


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
    text = options.pop("mode", "search")
    for mode in get_args(Mode):
        if text == mode:
            return RegexRule(pattern=pattern, mode=mode)
    modes = ", ".join(get_args(Mode))
    raise InvalidInput(f"rule {rule!r}: mode is {text!r}; expected one of {modes}", {"mode": modes})


_MAKERS: dict[str, Callable[[str, Options], Rule]] = {
    "sentiment": _sentiment,
    "length": _length,
    "regex": _regex,
    "repetition": _repetition,
}


def rule_names() -> list[str]:
    """The kinds of rules that `make_rule` knows, sorted."""
    return sorted(_MAKERS)


def _options(spec: str, text: str) -> Options:
    options: Options = {}
    while text:
        key, equals, rest = text.partition("=")
        # A pattern may hold commas, so it stands last and takes all that is left.
        value, _, text = (rest, "", "") if key == "pattern" else rest.partition(",")
        if not equals or not key or key in options:
            raise InvalidInput(
                f"rule {spec!r}: expected name:key=value,key=value, each key once", {"rule": "key=value"}
            )
        options[key] = value
    return options


def make_rule(spec: str) -> Rule:
    """The rule that `spec` describes.

    For example "sentiment", "length:target=40", "regex:mode=count,pattern=…", "repetition:n=2".

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

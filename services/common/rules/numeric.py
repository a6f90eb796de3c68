"""Owns the numeric rule: whether the completion's answer is the number of a column. Evaluates no arithmetic.

Where the answer is looked for, first found first:
    the last \\boxed{…}        MATH, Hendrycks et al. 2021, arXiv 2103.03874
    after the last ####         GSM8K, Cobbe et al. 2021, arXiv 2110.14168
    the last number of the text

LaTeX is read as MATH writes it: 11,\\!760 and 1{,}234 are one number, \\frac34 is three quarters, and the 2 of
12\\text{ cm}^2 is no number of its own.
"""

from __future__ import annotations

import decimal
import re
from collections.abc import Mapping
from decimal import Decimal

from services.common.errors import InvalidInput
from services.common.rules.base import check_length, column_of, rule_digest

MAX_CHARACTERS = 200_000
_MAX_DIGITS = 1000
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_PLAIN = rf"[$€£]?(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,4}}(?![0-9]))?"
# A minus after a letter, digit or bracket is an operator or a hyphen, no sign.
_NUMBER = rf"(?:(?<![\w)\]}}])[-+\u2212])?{_PLAIN}"
_FOUND = re.compile(
    rf"(?P<sign>(?<![\w)\]}}])[-\u2212])?\\[dt]?frac\{{(?P<top>{_NUMBER})\}}\{{(?P<bottom>{_NUMBER})\}}"
    rf"|(?P<over>{_NUMBER})[ ]?/[ ]?(?P<under>{_PLAIN})"
    rf"|(?P<number>{_NUMBER})"
)
_NOTHING = re.compile(r"\\!|\\(?:left|right)(?![a-zA-Z])")
# Between digits a space in front of three more parts thousands.
_THOUSANDS = re.compile(r"(?<=[0-9])\\[,;: ](?=[0-9]{3}(?![0-9]))")
_SPACE = re.compile(r"\\[,;: ]")
# Words in a formula with their exponent, so units; not words with a number, which may be the answer.
_WORDS = re.compile(
    r"\\(?:text|textbf|textrm|mathrm|mbox)\{(?:[^{}0-9^]|\^(?:-?[0-9])?)*+\}(?:\^(?:\{[^{}]*\}|[^{}\s]))?"
)
_FRACTION = re.compile(r"(\\[dt]?frac) ?(\{[^{}]*\}|[0-9]) ?(\{[^{}]*\}|[0-9])")
_CONTEXT = decimal.Context(
    prec=50, traps=[decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow]
)


class NumericRule:
    """1 where |number - answer| <= tolerance * max(1, |answer|), else 0; also 0 where no number is found.

    Numbers: 1,234.5, -3, .5, 6e23, $7, 3/4, \\frac{3}{4}; a percent sign is left out of account.
    """

    def __init__(self, *, tolerance: float = 1e-6, column: str = "answer") -> None:
        self._tolerance = Decimal(repr(tolerance))
        self._column = column
        self.name = f"numeric:tolerance={tolerance!r},column={column}"
        self.digest = rule_digest("numeric", 2, tolerance=tolerance, column=column)

    def score(self, prompt: str, completion: str, columns: Mapping[str, str]) -> float:  # noqa: ARG002
        """1 or 0."""
        check_length(completion, MAX_CHARACTERS)
        answer = answer_number(column_of(columns, self._column, MAX_CHARACTERS))
        if answer is None:
            raise InvalidInput(
                f"column {self._column} holds no number", {f"columns[{self._column}]": "a number"}
            )
        number = answer_number(completion)
        return float(number is not None and _near(number, answer, self._tolerance))


def answer_number(text: str) -> Decimal | None:
    """The number that a text gives as its answer."""
    text = _without_layout(text)
    boxed = _last_boxed(text)
    if boxed is not None:
        return _last_number(boxed)
    _, marker, after = text.rpartition("####")
    return _number_of(_FOUND.search(after)) if marker else _last_number(text)


def _without_layout(text: str) -> str:
    """Without what LaTeX has for the eye alone, and both parts of a fraction in braces."""
    text = _NOTHING.sub("", text).replace("{,}", ",")
    text = _SPACE.sub(" ", _THOUSANDS.sub("", text))
    text = _WORDS.sub(" ", text)
    return _FRACTION.sub(_in_braces, text)


def _in_braces(fraction: re.Match[str]) -> str:
    over, under = (part.strip("{}") for part in fraction.group(2, 3))
    return f"{fraction[1]}{{{over}}}{{{under}}}"


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for place in range(begin, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[begin:place]
    return text[begin:]


def _last_number(text: str) -> Decimal | None:
    last = None
    for last in _FOUND.finditer(text):  # noqa: B007 - the last one is what is wanted
        pass
    return _number_of(last)


def _number_of(found: re.Match[str] | None) -> Decimal | None:
    if found is None or len(found[0]) > _MAX_DIGITS:
        return None
    try:
        if found["top"] is not None:
            value = _CONTEXT.divide(_decimal(found["top"]), _decimal(found["bottom"]))
            return -value if found["sign"] else value
        if found["over"] is not None:
            return _CONTEXT.divide(_decimal(found["over"]), _decimal(found["under"]))
        return _decimal(found["number"])
    except decimal.DecimalException:
        return None


def _decimal(text: str) -> Decimal:
    return Decimal(re.sub("[$€£,]", "", text).replace("\u2212", "-"))


def _near(number: Decimal, answer: Decimal, tolerance: Decimal) -> bool:
    if number == answer:
        return True
    bound = _CONTEXT.multiply(tolerance, max(Decimal(1), abs(answer)))
    return _CONTEXT.abs(_CONTEXT.subtract(number, answer)) <= bound

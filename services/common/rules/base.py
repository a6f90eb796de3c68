"""Owns what a text rule is. Knows no rule, no model, no service."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from services.common.errors import InvalidInput
from services.common.packages import package

MAX_CHARACTERS = 1_000_000


class Rule(Protocol):
    """A deterministic function of one row of text."""

    @property
    def name(self) -> str:
        """The specification that makes this rule again, as `make_rule` reads it."""
        ...

    @property
    def digest(self) -> str:
        """Hex. Equal digests score equally; a change of the rule's code or data changes it."""
        ...

    def score(self, prompt: str, completion: str, columns: Mapping[str, str]) -> float:
        """A finite number, higher is better; its unit is the rule's own.

        `columns` are the row's other data-set columns. Raises TrimtabError for a row that cannot be scored.
        """
        ...


def rule_digest(kind: str, version: int, **parameters: object) -> str:
    """BLAKE2b-128, hex, of what makes a rule what it is.

    `version` is raised by hand when the code of the rule changes what it scores.
    """
    canonical = json.dumps([kind, version, parameters], sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def check_length(completion: str, most: int = MAX_CHARACTERS) -> None:
    """Raises InvalidInput for a completion longer than `most` characters."""
    if len(completion) > most:
        raise InvalidInput(
            f"a completion of {len(completion)} characters is too long here; expected at most {most}",
            {"completion": f"at most {most} characters"},
        )


def column_of(columns: Mapping[str, str], name: str, most: int = MAX_CHARACTERS) -> str:
    """The row's data-set column. Raises InvalidInput where it is missing or longer than `most` characters."""
    if name not in columns:
        there = ", ".join(sorted(columns)[:8]) or "none"
        raise InvalidInput(
            f"column {name} is missing; the row's columns: {there}", {f"columns[{name}]": "a value"}
        )
    if len(columns[name]) > most:
        raise InvalidInput(
            f"column {name} has {len(columns[name])} characters; expected at most {most}",
            {f"columns[{name}]": f"at most {most} characters"},
        )
    return columns[name]


def package_of(rule: str, module: str, distribution: str) -> Any:
    """The library that a rule needs. Raises InvalidInput."""
    return package("rule", rule, module, distribution, extra="reward")

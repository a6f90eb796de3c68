"""Owns what a text rule is. Knows no rule, no model, no service."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Protocol

from services.common.errors import InvalidInput

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

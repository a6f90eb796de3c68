"""What becomes of a config while it is read: values, what they were mapped to, what was refused. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.trl.fates import INERT, REFUSED
from orchestrator.trl.known import Trainer, all_fields
from services.common.errors import ConfigError

Fate = Literal["mapped", "no effect"]
_EMPTY: tuple[Any, ...] = (None, "", [], {}, False)


@dataclass(frozen=True, slots=True)
class Note:
    """One line for a person: a field that the config gives, its value, what became of it."""

    field: str
    value: Any
    fate: Fate
    what: str


@dataclass(slots=True)
class Draft:
    """A conversion in the making.

    given: what the config says. tables: of the run's file, for trainers that become a run. arguments: of the job's
    command, for the others.
    """

    trainer: Trainer
    given: Mapping[str, Any]
    tables: dict[str, Any] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def value(self, name: str) -> Any:
        """The config's, else TRL's default."""
        self.used.add(name)
        value = self.given.get(name)
        return all_fields(self.trainer)[name] if name not in self.given else value

    def number(self, name: str) -> float:
        """The same as a number. What is none is refused, and 1 stands for it until all that is refused is told."""
        value = self.value(name)
        try:
            found = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            found = math.nan
        if math.isfinite(found):
            return found
        self.refuse(name, "expected a number")
        return 1.0

    def whole(self, name: str, least: int) -> int:
        """The same as a whole number of at least `least`; as above."""
        found = self.number(name)
        if found == int(found) and found >= least:
            return int(found)
        self.refuse(name, f"expected a whole number of at least {least}")
        return max(1, least)

    def numbers(self, name: str) -> list[float]:
        """The same as numbers, which YAML may have left as text; none for what is no list of them."""
        value = self.value(name)
        if not isinstance(value, list | tuple):
            return []
        try:
            return [float(one) for one in value]
        except (TypeError, ValueError):
            return []

    def put(self, path: str, value: Any, *fields: str, remark: str = "") -> None:
        """Write a field of the run (a.b.c), and note which of the config's fields it comes from."""
        self._check_given(value, fields)
        *tables, last = path.split(".")
        target = self.tables
        for table in tables:
            target = target.setdefault(table, {})
        target[last] = value
        self.mapped(f"{path} = {value}", *fields, remark=remark)

    def argue(self, flag: str, value: Any, *fields: str, remark: str = "") -> None:
        """Add a flag to the job's command; a value of True is a flag alone."""
        self._check_given(value, fields)
        self.arguments += [flag] if value is True else [flag, str(value)]
        self.mapped(flag if value is True else f"{flag} {value}", *fields, remark=remark)

    def _check_given(self, value: Any, fields: tuple[str, ...]) -> None:
        """A null would be left out of a file, so that our default were taken for TRL's."""
        if value is not None and not (isinstance(value, list) and None in value):
            return
        for name in fields:
            told = any(refused.startswith(f"{name} = ") for refused in self.refused)
            if self.given.get(name, "") is None and not told:
                self.refuse(name, "expected a value")

    def mapped(self, what: str, *fields: str, remark: str = "") -> None:
        """Note a mapping."""
        for name in fields:
            self.used.add(name)
            if name in self.given:
                self.notes.append(
                    Note(name, self.given[name], "mapped", f"{what}{f' ({remark})' if remark else ''}")
                )

    def copy(self, name: str, path: str, *, remark: str = "") -> None:
        """The same value under another name."""
        self.put(path, self.value(name), name, remark=remark)

    def refuse(self, name: str, why: str) -> None:
        """This value cannot be carried over."""
        self.used.add(name)
        self.refused.append(f"{name} = {self.given.get(name, all_fields(self.trainer).get(name))}: {why}")

    def inert(self, name: str, why: str) -> None:
        """This value changes nothing."""
        self.used.add(name)
        if name in self.given:
            self.notes.append(Note(name, self.given[name], "no effect", why))

    def settle(self) -> None:
        """Give every field that the config has its fate. Raises ConfigError with all that is refused, in one line."""
        fields = all_fields(self.trainer)
        for name in fields:
            if name in self.used:
                continue
            if name in REFUSED:
                self._settle_refused(name, fields[name])
            else:
                self.inert(name, INERT[name])
        if self.refused:
            raise ConfigError("; ".join(self.refused))

    def _settle_refused(self, name: str, default: Any) -> None:
        value = self.given.get(name, default)
        if value != default and value not in _EMPTY:
            self.refuse(name, REFUSED[name])
        else:
            self.inert(name, "as TRL's default, which changes nothing")

    def differing(self) -> list[Note]:
        """Notes on values that are not TRL's defaults."""
        fields = all_fields(self.trainer)
        return [note for note in self.notes if note.value != fields.get(note.field)]

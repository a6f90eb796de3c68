"""Label and field selectors, as texts of the API and as LabelSelector objects. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.fakes.kube.errors import bad_request


@dataclass(frozen=True, slots=True)
class Requirement:
    """`wanted` True: the value is one of `values` (any where it is None); False: it is none of them, or absent."""

    key: str
    wanted: bool
    values: frozenset[str] | None

    def holds(self, found: str | None) -> bool:
        """For a value, None where there is none."""
        there = found is not None and (self.values is None or found in self.values)
        return there is self.wanted


_IN = re.compile(r"^(?P<key>\S+)\s+(?P<not>notin|in)\s*\((?P<values>[^)]*)\)$")
_EQUALS = re.compile(r"^(?P<key>[^=!\s]+)\s*(?P<operator>==|=|!=)\s*(?P<value>\S*)$")
_COMMA = re.compile(r",(?![^(]*\))")


def _terms(text: str) -> list[str]:
    return [term.strip() for term in _COMMA.split(text) if term.strip()]


def parse_labels(text: str) -> list[Requirement]:
    """a=b, a==b, a!=b, a in (b,c), a notin (b), a, !a; all must hold."""
    return [_label_term(term) for term in _terms(text)]


def _label_term(term: str) -> Requirement:
    if match := _IN.match(term):
        values = frozenset(value.strip() for value in match["values"].split(","))
        return Requirement(match["key"], match["not"] == "in", values)
    if match := _EQUALS.match(term):
        return Requirement(match["key"], match["operator"] != "!=", frozenset([match["value"]]))
    if re.match(r"^!?\s*[-A-Za-z0-9_./]+$", term):
        return Requirement(term.lstrip("! "), not term.startswith("!"), None)
    raise bad_request(f"unable to parse requirement: found '{term}'")


def parse_fields(text: str, known: frozenset[str]) -> list[Requirement]:
    """a=b, a==b, a!=b over the fields that the resource can be selected by."""
    found = []
    for term in _terms(text):
        match = _EQUALS.match(term)
        if not match:
            raise bad_request(f"invalid selector: '{term}'; can't understand '{term}'")
        if match["key"] not in known:
            raise bad_request(f"field label not supported: {match['key']}")
        found.append(Requirement(match["key"], match["operator"] != "!=", frozenset([match["value"]])))
    return found


def labels_match(requirements: list[Requirement], obj: Mapping[str, Any]) -> bool:
    """Whether an object's labels fulfil all."""
    labels = obj["metadata"].get("labels") or {}
    return all(each.holds(labels.get(each.key)) for each in requirements)


def fields_match(requirements: list[Requirement], obj: Mapping[str, Any]) -> bool:
    """Whether an object's fields do; a field that is not there is empty."""
    return all(each.holds(field_text(obj, each.key)) for each in requirements)


def field_text(obj: Mapping[str, Any], path: str) -> str:
    """A field as selectors compare it."""
    if path == "source":  # of an Event: who reported it
        path = "source.component"
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def selector_requirements(selector: Mapping[str, Any]) -> list[Requirement]:
    """Of a LabelSelector object."""
    found = [
        Requirement(key, True, frozenset([value]))
        for key, value in (selector.get("matchLabels") or {}).items()
    ]
    for each in selector.get("matchExpressions") or []:
        operator = each["operator"]
        values = frozenset(each.get("values", ())) if operator in ("In", "NotIn") else None
        found.append(Requirement(each["key"], operator in ("In", "Exists"), values))
    return found


def selector_text(selector: Mapping[str, Any]) -> str:
    """A LabelSelector object as text."""
    terms = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for each in selector.get("matchExpressions") or []:
        values = ",".join(sorted(each.get("values", ())))
        terms.append({
            "In": f"{each['key']} in ({values})", "NotIn": f"{each['key']} notin ({values})",
            "Exists": each["key"], "DoesNotExist": f"!{each['key']}",
        }[each["operator"]])  # fmt: skip
    return ",".join(terms)

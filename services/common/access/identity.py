"""Who calls, and what that allows. Knows neither how callers prove it nor what is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.access.scopes import SCOPES


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A caller by the name of its key or certificate.

    models: the ones it may use, empty: all. rows_per_minute: 0: no quota; shared by all keys of the name.
    """

    name: str
    scopes: frozenset[str]
    models: frozenset[str] = frozenset()
    rows_per_minute: int = 0

    def may_use(self, model: str) -> bool:
        """Whether its allow-list names the model."""
        return not self.models or model in self.models


# Everybody, where access control is off: only this machine can call then, or somebody asked for it.
ANYBODY = Identity(name="", scopes=frozenset(SCOPES))

"""Owns renewing the order in which tasks go out, as labels come in. Knows no method of choosing.

a label, an upload ─▶ wait refresh_seconds ─▶ games, open tasks ─▶ Chooser (a thread) ─▶ store.prefer
"""

from __future__ import annotations

import asyncio

import structlog

from services.common.errors import TrimtabError
from services.preference.assignment import Chooser
from services.preference.preferences import Preferences

_log = structlog.get_logger(__name__)


class ChoosingLoop:
    """Asks the chooser again whenever there is news, at most every `refresh_seconds`."""

    def __init__(
        self, preferences: Preferences, chooser: Chooser, *, refresh_seconds: float, consider_tasks: int
    ) -> None:
        """`consider_tasks`: open tasks that are shown to the chooser, in the drawn order."""
        self._preferences = preferences
        self._chooser = chooser
        self._refresh_seconds = refresh_seconds
        self._consider_tasks = consider_tasks

    async def run(self) -> None:
        """Until cancelled. What fails is logged and tried again; until then the last order holds."""
        while True:
            news = self._preferences.news
            try:
                await self._preferences.choose(self._chooser, limit=self._consider_tasks)
            except TrimtabError as error:
                _log.warning("the order of tasks could not be renewed", error=str(error))
            await asyncio.sleep(self._refresh_seconds)
            await news.wait()

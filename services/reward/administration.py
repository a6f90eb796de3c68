"""Loading, swapping and taking away at run time, for gRPC and HTTP alike. Owns the order of things: opening takes
place beside scoring, the change itself at once, and what was replaced is closed when its last row is scored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import structlog
from pydantic import ValidationError

from services.common.errors import InvalidInput
from services.common.spec.rewards import source_table
from services.common.validation import Violations, require
from services.reward.config import SourceSpec, is_name
from services.reward.rewards.base import RewardSource
from services.reward.scoring import RewardModels, Slot

# (definition, name) -> source; runs on a thread and may take minutes.
Opener = Callable[[SourceSpec, str], RewardSource]
_log = structlog.get_logger(__name__)


class Administration:
    """Changes the table of models, one change at a time."""

    def __init__(self, models: RewardModels, opener: Opener, on_load: Callable[[], None]) -> None:
        self._models = models
        self._open = opener
        self._on_load = on_load
        self._changing = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def load(self, name: str, definition: SourceSpec) -> Slot:
        """Load a source behind a new name. AlreadyExists before the seconds that loading takes."""
        _name_violations(name).raise_any()
        async with self._changing:
            self._models.check_free(name)
            source = await self._opened(definition, name)
            try:
                self._models.add(name, source)
            except BaseException:
                self._close(source)
                raise
        self._on_load()
        return self._models.slot(name)

    async def swap(self, name: str, definition: SourceSpec) -> tuple[Slot, str]:
        """Put another source behind a name; its slot, and the digest of the one before."""
        _name_violations(name).raise_any()
        async with self._changing:
            self._models.slot(name)
            source = await self._opened(definition, name)
            try:
                replaced = self._models.swap(name, source)
            except BaseException:
                self._close(source)
                raise
            digest = replaced.digest
            self._close(replaced)
        return self._models.slot(name), digest

    async def unload(self, name: str) -> None:
        """Take a model away."""
        require(bool(name), "name", "expected a name, got nothing")
        async with self._changing:
            self._close(self._models.remove(name))

    async def set_shadow(self, name: str, shadow: str) -> None:
        """Let another model score the same rows for comparison; "" ends that."""
        require(bool(name), "name", "expected a name, got nothing")
        async with self._changing:
            self._models.set_shadow(name, shadow)

    async def _opened(self, definition: SourceSpec, name: str) -> RewardSource:
        """Opening goes on where its caller gives up: no other begins before it ends, and what it opened is closed."""
        opening = asyncio.create_task(asyncio.to_thread(self._open, definition, name))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._unwanted)
            await asyncio.wait([opening])
            raise

    def _unwanted(self, opening: asyncio.Task[RewardSource]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._close(opening.result())

    def _close(self, source: RewardSource) -> None:
        """Let it finish what it holds, beside everything else."""
        task = asyncio.create_task(asyncio.to_thread(source.close))
        self._closing.add(task)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.warning("a replaced model did not close", error=str(task.exception()))


def parse_definition(name: str, path: str, definition: str) -> SourceSpec:
    """What LoadModel names: a folder, rule:<rule>, or a [[models]] table as JSON. InvalidInput otherwise."""
    found = _name_violations(name)
    found.check(
        bool(path) != bool(definition), "path", "expected a folder, rule:<rule>, or a definition instead"
    )
    found.raise_any()
    if not definition:
        return source_at(path)
    try:
        table: Any = json.loads(definition)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"definition: no JSON ({error})", {"definition": "a JSON object"}) from error
    return checked_definition(table)


def source_at(location: str) -> SourceSpec:
    """The source at a location as one writes it: a folder, rule:<rule>, function:<function> or trl:<function>."""
    return checked_definition(source_table(location))


def checked_definition(table: Any) -> SourceSpec:
    """A [[models]] table, checked. InvalidInput names the field and what was expected."""
    try:
        return SourceSpec.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "definition"
        raise InvalidInput(f"{field}: {first['msg']}", {field: first["msg"]}) from error


def _name_violations(name: str) -> Violations:
    found = Violations()
    found.check(
        is_name(name),
        "name",
        "expected 1 to 63 letters, digits, dots, dashes or underscores",
    )
    return found

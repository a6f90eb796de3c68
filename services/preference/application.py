"""Owns the service's life: what starts, what drains. Knows no message and no table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import grpc

from services.common.access.gate import Gate
from services.common.http_guard import AsgiApp, Stage
from services.preference.annotator import BuiltInAnnotator
from services.preference.assignment import Chooser
from services.preference.choosing import ChoosingLoop
from services.preference.config import AssignmentSpec, PreferenceConfig
from services.preference.preferences import Preferences
from services.preference.servicer import SERVICE_NAME, PreferenceServicer
from services.preference.store import PreferenceStore
from trimtab.preference.v1.preference_pb2_grpc import add_PreferenceServiceServicer_to_server


class PreferenceApplication:
    """The store, the servicer and the built-in annotators of one process."""

    name = "preference"

    def __init__(self, config: PreferenceConfig) -> None:
        self._config = config
        self.preferences = Preferences(self._open_store, config.rating.method())
        self._annotators = [
            BuiltInAnnotator(
                self.preferences,
                name=spec.name,
                rule=spec.rule,
                margin=spec.margin,
                campaign=spec.campaign,
                batch_tasks=spec.batch_tasks,
                poll_seconds=spec.poll_seconds,
            )
            for spec in config.annotators
        ]
        self._running: list[asyncio.Task[None]] = []
        self._choosing: asyncio.Task[None] | None = None

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the servicer; its full name."""
        add_PreferenceServiceServicer_to_server(PreferenceServicer(self.preferences), server)
        return [SERVICE_NAME]

    def http_app(self, gate: Gate, stage: Callable[[], Stage]) -> AsgiApp:
        """The pages; see services/common/server.py AnswersHttp."""
        from services.preference.web.app import WebSettings, web_application

        return web_application(self.preferences, WebSettings.of(self._config, gate), stage)

    async def start(self) -> None:
        """Open the database, then let the annotators begin. Mismatch if one judges otherwise than before."""
        await self.preferences.open()
        for annotator in self._annotators:
            await annotator.register()
        self._running = [asyncio.create_task(annotator.run()) for annotator in self._annotators]
        chooser = _chooser(self._config.assignment)
        if chooser is not None:
            loop = ChoosingLoop(
                self.preferences,
                chooser,
                refresh_seconds=self._config.assignment.refresh_seconds,
                consider_tasks=self._config.assignment.consider_tasks,
            )
            self._choosing = asyncio.create_task(loop.run())

    async def drain(self) -> None:
        """Let the annotators end their batch and give back their leases. Calls go on being answered."""
        if self._choosing is not None:
            self._choosing.cancel()
        if not self._running:
            return
        for annotator in self._annotators:
            annotator.stop()
        await asyncio.gather(*self._running)
        for annotator in self._annotators:
            await annotator.release()

    async def wait(self) -> int:
        """Returns only if an annotator ends by an error of its own, which is raised."""
        if self._running:
            await asyncio.gather(*self._running)
        await asyncio.Event().wait()
        return 0

    def _open_store(self) -> PreferenceStore:
        return PreferenceStore(
            self._config.database_url.get_secret_value(),
            lease_seconds=self._config.lease_seconds,
            seed=self._config.order_seed,
            assignment=self._config.assigning(),
        )


def _chooser(spec: AssignmentSpec) -> Chooser | None:
    """What the configuration names; none where the drawn order of the upload is wanted."""
    if spec.order == "random":
        return None
    from services.preference.active import choose

    return choose

"""The services of a run of rounds: which model each serves, and clients of them. Owns their coming and going.

preference and reward stay for the whole run; policy and reference are started anew with another model; a learner lives
for one round. Knows nothing of rounds.
"""

from __future__ import annotations

import asyncio
import shlex
import tomllib
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

from orchestrator.demo.collect import Comparisons, persist
from orchestrator.demo.steps import learned, service_settings
from orchestrator.iterate.options import IterateSpec
from orchestrator.local.layout import RunLayout
from orchestrator.local.ports import free_ports, is_free
from orchestrator.local.progress import LiveView
from orchestrator.local.services import HOST
from orchestrator.local.stack import Stack
from services.common.spec.run import RunSpec
from trimtab import AsyncPolicyClient, AsyncPreferenceClient
from trimtab.clients.reward import AsyncRewardClient

_REWARD_NAME = "reward"
_SWAP_SECONDS = 300.0


class Crew:
    """Enter it in the main thread; `stack` is there from then on."""

    def __init__(
        self, layout: RunLayout, spec: RunSpec, told: IterateSpec, on_event: Callable[[str], None]
    ) -> None:
        self._config = layout.service_config("preference")
        self.pages = ""
        """Where people compare; empty where the built-in annotator does."""
        settings = service_settings(told.annotator_rule)
        if told.by_people:
            port = told.label_port or _pages_port(layout, on_event)
            self.pages = f"http://{HOST}:{port}"
            settings["preference"] |= {"server": {"http_port": port}}
        self._spec = spec
        self._models: dict[str, str] = {}
        self._closing = AsyncExitStack()
        self.stack = Stack(
            layout,
            spec,
            ["preference"],
            settings=settings,
            env={"TOKENIZERS_PARALLELISM": "false"},
            on_event=on_event,
        )

    async def __aenter__(self) -> Crew:
        await self._closing.__aenter__()
        try:
            await self._closing.enter_async_context(self.stack)
            await self.stack.ready("preference")
        except BaseException:
            await self._closing.aclose()
            raise
        return self

    async def __aexit__(self, *ended: Any) -> None:
        await self._closing.aclose()

    @property
    def link_command(self) -> str:
        """What makes a personal link for somebody who is to compare, in every phase: the database is this run's."""
        return f"python -m services.preference.people new NAME --config {shlex.quote(str(self._config))}"

    async def use(self, name: str, model: str) -> None:
        """`policy` or `reference` is started with this model, unless it was; it may be loading still."""
        if self._models.get(name) == model:
            return
        if self.stack.has(name):
            await self.stack.remove(name)
        await self.stack.add(name, settings={"model": {"path": model}})
        self._models[name] = model

    async def learn(self, spec: RunSpec, out: Path, view: LiveView) -> None:
        """A learner from its beginning (or its last checkpoint in `out`) to its end. Policy and reference are there."""
        await asyncio.gather(self.stack.ready("policy"), self.stack.ready("reference"))
        self._models.pop("policy", None)  # it follows the learner from now on
        await self.stack.add("learner", spec=spec, settings={"out": str(out)})
        await learned(self.stack, view)
        await self.stack.remove("learner")

    async def use_reward_model(self, folder: Path) -> str:
        """Put a model behind the reward service's name, by a swap where it serves one already; its digest."""
        spec = self._spec.model_copy(update={"reward_model": str(folder)})
        if not self.stack.has("reward"):
            await self.stack.add("reward", spec=spec)
            return await self.reward_digest()
        # First on file: a service that is restarted from here on comes back with the new one.
        self.stack.configure("reward", spec=spec)
        client = cast(AsyncRewardClient, await self._client(AsyncRewardClient, "reward"))

        async def call() -> Any:
            return await client.swap_model(_REWARD_NAME, str(folder), timeout_seconds=_SWAP_SECONDS)

        answer = await persist(call, lambda: self.stack.ready("reward"))
        return str(answer.model.model.model_digest)

    async def reward_digest(self) -> str:
        """The digest of the model that the reward service serves now."""
        client = cast(AsyncRewardClient, await self._client(AsyncRewardClient, "reward"))
        models = await persist(client.list_models, lambda: self.stack.ready("reward"))
        return str(next(one.model.model_digest for one in models if one.name == _REWARD_NAME))

    async def policy_client(self, model: str) -> AsyncPolicyClient:
        """A client of the policy service, which serves this model."""
        await self.use("policy", model)
        return cast(AsyncPolicyClient, await self._client(AsyncPolicyClient, "policy"))

    async def preference_client(self) -> AsyncPreferenceClient:
        """A client of the preference service."""
        return cast(AsyncPreferenceClient, await self._client(AsyncPreferenceClient, "preference"))

    async def comparisons(self) -> Comparisons:
        """Items in, comparisons and ratings out."""
        return Comparisons(await self.preference_client(), lambda: self.stack.ready("preference"))

    async def _client(self, kind: Any, name: str) -> Any:
        """A client that is closed with the crew."""
        return await self._closing.enter_async_context(kind(await self.stack.ready(name)))


def _pages_port(layout: RunLayout, on_event: Callable[[str], None]) -> int:
    """The one of before where a run is resumed, since links and unsent answers are of an address; else a free one."""
    config = layout.service_config("preference")
    written = tomllib.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    before = int(written.get("server", {}).get("http_port", 0))
    if before and is_free(before, HOST):
        return before
    if before:
        on_event(
            f"port {before}, where people compared, is taken: links need another, unsent answers wait there"
        )
    return free_ports(1)[0]

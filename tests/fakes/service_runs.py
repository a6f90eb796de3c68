"""A run over its real services, gRPC and a real queue server, all in this process: what processes of their own add
is their start, which takes most of a small run's time."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from orchestrator.local.layout import RunLayout
from orchestrator.local.queue_server import QueueServer
from orchestrator.local.services import Surroundings, choose_ports, role_of, service_config, services_of
from services.common.server import serving
from services.common.spec.run import RunSpec
from services.learner.application import LearnerApplication
from services.learner.config import LearnerConfig
from services.policy.application import PolicyApplication
from services.policy.config import PolicyConfig
from services.reference.application import ReferenceApplication
from services.reference.config import ReferenceConfig
from services.reward.application import RewardApplication
from services.reward.config import RewardConfig

_SERVICES: dict[str, tuple[Any, Any]] = {
    "services.policy": (PolicyConfig, PolicyApplication),
    "services.reference": (ReferenceConfig, ReferenceApplication),
    "services.reward": (RewardConfig, RewardApplication),
    "services.learner": (LearnerConfig, LearnerApplication),
}


def run_over_services(spec: RunSpec, out: Path, *, resume: bool = False) -> None:
    """Train to the last step, with the configurations that `trimtab train` would write."""
    layout = RunLayout.prepare(out, resume=resume)
    server = QueueServer(layout.queue)
    server.start()
    try:
        asyncio.run(_train(spec, layout, server.url))
    finally:
        server.stop()


async def _train(spec: RunSpec, layout: RunLayout, queue_url: str) -> None:
    names = services_of(spec)
    around = Surroundings(
        layout=layout, queue_url=queue_url, run_uid=layout.run_uid(), ports=choose_ports(names)[1]
    )
    async with AsyncExitStack() as stack:
        for name in names:
            config_type, application_type = _SERVICES[role_of(name).module]
            settings = {"linger_seconds": 0} if name == "learner" else {}
            config = config_type.model_validate(service_config(name, spec, around, settings))
            application = application_type(config)
            await stack.enter_async_context(serving(config, application))
        await application.wait()  # the learner is the last one

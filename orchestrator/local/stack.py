"""A run's queue server and services on this machine, as one thing to enter and leave.

    async with Stack(layout, spec, ["policy", "reference", "preference"]) as stack:
        await stack.ready("policy")
        channel = grpc.aio.insecure_channel(stack.endpoint("policy"))
        await stack.add("learner")            # later
        await stack.ended("learner")

Owns the order of things; knows nothing of what the services do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator.local.layout import RunLayout, SupervisorLock, write_private
from orchestrator.local.log_files import MOST_BYTES, keep_short
from orchestrator.local.memory import MemoryMeter
from orchestrator.local.processes import ManagedProcess
from orchestrator.local.queue_child import QueueChild
from orchestrator.local.run_tls import RunTls
from orchestrator.local.services import (
    QUEUE,
    QUEUE_DRAIN_RANK,
    ROLES,
    Surroundings,
    choose_ports,
    overlay,
    queue_users,
    role_of,
    service_config,
    service_process,
    services_of,
    stage_of,
)
from orchestrator.local.shared_memory import remove_dead, weights_folder
from orchestrator.local.supervisor import ProcessStatus, Supervisor
from orchestrator.local.toml import to_toml
from orchestrator.planning.processes import USER_ERROR, Limits, Restart
from services.common.channels import PLAINTEXT
from services.common.errors import NotFound, ServiceError, UserError
from services.common.spec.channel import ChannelSpec
from services.common.spec.run import RunSpec
from services.common.stages.rights import OPERATOR

_LOG = logging.getLogger(__name__)
_PUBLISH_SECONDS = 0.25
_QUEUE_SECONDS = 60.0
_READY_SECONDS = 600.0
_GIB = 2**30


class Stack:
    """The queue server and the named services of one run, supervised. Enter it in the main thread.

    `services`: what to start at once; absent: all that the spec's slip needs, and the learner.
    `settings`: per service, tables laid over what follows from the spec.
    `on_event` hears one line for a person about each failure and restart.
    `log_bytes`: a log beyond it is set aside, see log_files.py. `tls`: the services speak mTLS, see run_tls.py.
    """

    def __init__(
        self,
        layout: RunLayout,
        spec: RunSpec,
        services: Sequence[str] | None = None,
        *,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        on_event: Callable[[str], None] = _LOG.info,
        log_bytes: int = MOST_BYTES,
        tls: bool = False,
    ) -> None:
        self.layout = layout
        self.spec = spec
        self.supervisor = Supervisor(limits=limits or Limits(), on_event=on_event)
        self._first = tuple(services_of(spec) if services is None else services)
        self._settings = dict(settings or {})
        self._env = dict(env or {})
        self._leaving = contextlib.AsyncExitStack()
        names = tuple(dict.fromkeys((*ROLES, *services_of(spec), *self._first)))
        stages = {
            name: stage_of(name, spec, self._settings.get(name))
            for name in names
            if role_of(name).reads_queue
        }
        users = queue_users(stages.values(), spec, layout.run_uid())
        queue_port, ports = choose_ports(names)
        self._queue = QueueChild(QUEUE, layout.queue, port=queue_port, users=users.lines())
        self._operator_url = users.url(OPERATOR, self._queue.address)
        self._around = Surroundings(
            layout=layout,
            queue_url=self._queue.url,
            queue_urls={name: users.url(stage, self._queue.address) for name, stage in stages.items()},
            run_uid=layout.run_uid(),
            ports=ports,
            weights_folder=weights_folder(layout.run_uid()),
            tls=RunTls(layout.tls) if tls else None,
        )
        shared = self._around.weights_folder
        self.memory = MemoryMeter(Path(shared) if shared else None)
        self._added: list[str] = []
        self._log_bytes = log_bytes

    @property
    def queue_url(self) -> str:
        """redis:// URL of the user who may do everything; this process alone knows it. Services have their own."""
        return self._around.queue_url

    def queue_url_of(self, name: str) -> str:
        """redis:// URL of a service's own user: a secret."""
        return self._around.queue_url_of(name)

    @property
    def run_uid(self) -> str:
        """Names the run's keys in the queue."""
        return self._around.run_uid

    async def __aenter__(self) -> Stack:
        try:
            await self._enter()
        except BaseException:
            await self._leaving.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leaving.aclose()

    async def add(
        self, name: str, *, settings: Mapping[str, Any] | None = None, spec: RunSpec | None = None
    ) -> None:
        """Start one more service. `settings` are laid over those given for it at the beginning."""
        role = role_of(name)
        self.supervisor.want(
            service_process(name, self._config(name, settings, spec), self.layout, self._env),
            needs=(QUEUE,) if role.reads_queue else (),
            drain_rank=role.drain_rank,
            restart=role.restart,
        )
        if name not in self._added:
            self._added.append(name)

    def has(self, name: str) -> bool:
        """Whether the service was added and not removed."""
        return name in self._added

    def configure(
        self, name: str, *, settings: Mapping[str, Any] | None = None, spec: RunSpec | None = None
    ) -> None:
        """Write a service's configuration anew without touching it: one that is restarted comes back with it."""
        service_process(name, self._config(name, settings, spec), self.layout, self._env)

    def _config(self, name: str, settings: Mapping[str, Any] | None, spec: RunSpec | None) -> dict[str, Any]:
        above = overlay(self._settings.get(name, {}), settings or {})
        return service_config(name, spec or self.spec, self._around, above)

    async def remove(self, name: str) -> None:
        """Drain one service and wait until it has ended."""
        if name not in self._added:
            raise NotFound(f"{name} is not part of this stack")
        self.supervisor.unwant(name)
        await self.supervisor.until_gone(name)
        self._added.remove(name)

    async def ready(self, name: str, timeout_seconds: float = _READY_SECONDS) -> str:
        """Wait until it serves; its gRPC address. Raises what it failed with, or Expired."""
        await self.supervisor.until_serving(name, timeout_seconds)
        return self.endpoint(name)

    async def ended(self, name: str) -> int:
        """Wait until a service that ends by itself (the learner) has ended well; its exit status, 0.

        Raises what any service was given up with meanwhile: the run could not go on.
        """
        ending = asyncio.ensure_future(self.supervisor.until_ended(name))
        try:
            while not ending.done():
                self.supervisor.raise_failures()
                await asyncio.wait((ending,), timeout=_PUBLISH_SECONDS)
            return ending.result()
        finally:
            ending.cancel()

    async def job(self, name: str, argv: Sequence[str], *, timeout_seconds: float | None = None) -> None:
        """Run a program to its end, its output in logs/<name>.log, killed with us if we are.

        Raises UserError (exit status 2) or ServiceError with the last line that it logged.
        """
        process = ManagedProcess(name, argv, log=self.layout.log(name), env=self._env)
        self.supervisor.want(process, restart=Restart.NEVER)
        try:
            code = await self.supervisor.until_ended(name, timeout_seconds)
            words = process.last_words()
        finally:
            self.supervisor.unwant(name)
            await self.supervisor.until_gone(name)
        if code != 0:
            kind = UserError if code == USER_ERROR else ServiceError
            raise kind(f"{name}: {words or f'ended with status {code}'}")

    def endpoint(self, name: str, kind: str = "grpc") -> str:
        """host:port of a service: kind is grpc, health or metrics. It is settled before it starts."""
        if name not in self._around.ports:
            raise NotFound(f"{name} is not part of this stack")
        return self._around.address(name, kind)

    def watching(self, name: str) -> ChannelSpec:
        """How this process calls a service."""
        tls = self._around.tls
        return PLAINTEXT if tls is None else tls.watching(name.split("-", 1)[0])

    def status(self) -> list[ProcessStatus]:
        """Every process, the queue first."""
        return self.supervisor.status()

    def memory_gib(self) -> float:
        """PSS now, of this process, the queue server, services and jobs together; a second old at most."""
        return self.memory.bytes_now / _GIB

    @property
    def peak_memory_gib(self) -> float:
        """The largest sum so far."""
        return self.memory.bytes_peak / _GIB

    async def _enter(self) -> None:
        self._leaving.enter_context(SupervisorLock(self.layout))
        write_spec(self.layout, self.spec)
        remove_dead()
        # Left in reverse: the services drain while the rest still looks on, the lock goes last.
        self._leaving.callback(remove_dead)
        self._leaving.callback(self.publish)
        short = keep_short(self.layout.log_files, most_bytes=self._log_bytes)
        for background in (self.memory.run(), self._publish_changes(), short):
            self._leaving.push_async_callback(_end, asyncio.create_task(background))
        await self._leaving.enter_async_context(self.supervisor)
        self.supervisor.want(self._queue, drain_rank=QUEUE_DRAIN_RANK)
        for name in self._first:
            await self.add(name)
        await self.supervisor.until_serving(QUEUE, _QUEUE_SECONDS)

    def publish(self) -> None:
        """Write endpoints.json. A full disk is logged: the services can do without the file."""
        try:
            write_private(self.layout.endpoints_file, json.dumps(self._published(), indent=1) + "\n")
        except OSError as error:
            _LOG.warning("cannot write %s: %s", self.layout.endpoints_file, error.strerror)

    async def _publish_changes(self) -> None:
        before: object = None
        while True:
            published = self._published()
            if published != before:
                self.publish()
                before = published
            await asyncio.sleep(_PUBLISH_SECONDS)

    def _published(self) -> dict[str, Any]:
        status = {one.name: one for one in self.supervisor.status()}
        names = dict.fromkeys((QUEUE, *self._added, *status))
        return {
            "run_uid": self.run_uid,
            "pid": os.getpid(),
            # For `trimtab queue`: whoever looks on and puts dead letters back.
            "queue": self._operator_url,
            "tls": self._around.tls is not None,
            "services": {name: self._published_service(name, status.get(name)) for name in names},
        }

    def _published_service(self, name: str, status: ProcessStatus | None) -> dict[str, Any]:
        ports = self._around.ports.get(name)
        addresses = {} if ports is None else ports.addresses()
        if status is None:
            return {**addresses, "phase": "stopped", "pid": None, "restarts": 0, "message": ""}
        # A count-down would rewrite the file each second.
        phase = "restarting" if status.phase.startswith("restarts") else status.phase
        return {
            **addresses,
            "phase": phase,
            "pid": status.pid,
            "restarts": status.restarts,
            "message": status.message,
        }


def write_spec(layout: RunLayout, spec: RunSpec) -> None:
    """Write run.toml, the spec as resolved: with every default and every flag in it."""
    write_private(layout.run_file, to_toml(spec.model_dump(mode="json", exclude_none=True)))


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

"""A training run on this machine: brings the services up, shows progress, waits for the learner's end.

Stack ──ready──▶ poll GetRunStatus each second ──learner ends──▶ counts, drain, exit status
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc
from rich.console import Console

from orchestrator.local.foreground import run_until_signal
from orchestrator.local.layout import RunLayout, SupervisorLock
from orchestrator.local.options import RunOptions
from orchestrator.local.progress import LiveView, counts
from orchestrator.local.services import check_scored
from orchestrator.local.stack import Stack, write_spec
from services.common.channels import PLAINTEXT, make_channel
from services.common.errors import ConfigError
from services.common.spec.channel import ChannelSpec
from services.common.spec.run import RunSpec
from trimtab.learner.v1 import learner_pb2 as learner
from trimtab.learner.v1 import learner_pb2_grpc as learner_grpc

if TYPE_CHECKING:  # the stubs' asyncio form exists for type checkers only
    from trimtab.learner.v1.learner_pb2_grpc import LearnerServiceAsyncStub

_POLL_SECONDS = 1.0


def train(run_file: Path, options: RunOptions, *, processes: int = 1) -> int:
    """`trimtab train`: over the services. Raises the error tree before anything is started, where it can.

    processes: of the learner.
    """
    spec = options.load_spec(run_file)
    check_scored(spec)
    if processes > 1 and spec.alone_because:
        raise ConfigError(f"--processes {processes}: {spec.alone_because}")
    layout = RunLayout.prepare(options.folder(spec), resume=options.resume, overwrite=options.overwrite)
    with LiveView(Console(stderr=True)) as view:
        return run_until_signal(run_training(layout, spec, view, processes=processes, tls=options.tls))


def in_process(run_file: Path, options: RunOptions) -> int:
    """`trimtab train --in-process`: all stages in this process over the in-memory twin of the queue."""
    from orchestrator.local.in_process import run_in_process

    spec = options.load_spec(run_file)
    check_scored(spec)
    layout = RunLayout.prepare(options.folder(spec), resume=options.resume, overwrite=options.overwrite)
    with SupervisorLock(layout):
        write_spec(layout, spec)
        code = run_in_process(spec, layout.root)
    return 0 if code is None else int(code)


async def run_training(
    layout: RunLayout, spec: RunSpec, view: LiveView, *, processes: int = 1, tls: bool = False
) -> int:
    """Train to the end; 0, or the learner's exit status. Raises what a service was given up with."""
    watch = StatusWatch(view)
    settings = {"learner": {"processes": processes}} if processes > 1 else {}
    async with Stack(layout, spec, settings=settings, on_event=view.say, tls=tls) as stack:
        view.waiting("starting " + ", ".join(status.name for status in stack.status()))
        polling = asyncio.create_task(watch.run(stack.endpoint("learner"), stack.watching("learner")))
        try:
            code = await stack.ended("learner")
        finally:
            polling.cancel()
            with suppress(asyncio.CancelledError):
                await polling
        if watch.latest is not None:
            view.say(f"step {watch.latest.step}/{watch.latest.total_steps}: {counts(watch.latest)}")
        view.say(f"done: {layout.root} (peak memory {stack.peak_memory_gib:.1f} GiB)")
        return code


class StatusWatch:
    """Asks the learner each second; a learner that restarts is waited for."""

    def __init__(self, view: LiveView) -> None:
        self._view = view
        self._warned: set[str] = set()
        self.latest: learner.GetRunStatusResponse | None = None

    async def run(self, address: str, access: ChannelSpec = PLAINTEXT) -> None:
        """Until cancelled."""
        async with make_channel(address, access) as channel:
            stub = cast("LearnerServiceAsyncStub", learner_grpc.LearnerServiceStub(channel))
            while True:
                await self._look(stub)
                await asyncio.sleep(_POLL_SECONDS)

    async def _look(self, stub: LearnerServiceAsyncStub) -> None:
        try:
            status = await stub.GetRunStatus(learner.GetRunStatusRequest(), timeout=5)
        except grpc.aio.AioRpcError:
            return
        self.latest = status
        self._view.show(status)
        for warning in set(status.warnings) - self._warned:
            self._warned.add(warning)
            self._view.say(f"warning: {warning}")

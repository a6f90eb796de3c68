"""Asks a run's services over the network: gRPC, the queue server, metrics pages. All is bounded, errors are None."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import grpc
import structlog
import urllib3

from orchestrator import calls
from orchestrator.cluster.control.answers import learner_figures, pod_figures, service_figures
from orchestrator.cluster.control.insight import LearnerFigures
from orchestrator.cluster.control.meter import PodFigures
from orchestrator.cluster.control.service_meter import ServiceFigures
from orchestrator.cluster.names import service_of
from orchestrator.cluster.operator.probe import Door
from services.common.errors import TrimtabError
from services.common.stages.tls_files import TlsFiles
from services.common.stages.tools import RedisTools
from trimtab.learner.v1 import learner_pb2 as wire

ANSWER_SECONDS = 3.0
AT_ONCE = 16
"""Pages that are read at the same time, over all runs."""
Figures = TypeVar("Figures")
_log = structlog.get_logger(__name__)


class NetworkProbe:
    """See probe.py."""

    def __init__(self) -> None:
        self._http = urllib3.PoolManager(maxsize=1, num_pools=4 * AT_ONCE, retries=False)
        self._pool = ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="probe")

    def close(self) -> None:
        """Let go of threads and connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._http.clear()

    def learner(self, door: Door) -> LearnerFigures | None:
        """See Probe.learner."""
        try:
            answer = calls.run_status(door.address, timeout_seconds=ANSWER_SECONDS, by=_approach(door))
        except TrimtabError:
            return None
        if answer.phase == wire.RUN_PHASE_LOADING:
            return None
        return learner_figures(answer, paused=answer.phase == wire.RUN_PHASE_PAUSED)

    def checkpoint(self, door: Door, timeout_seconds: float) -> LearnerFigures | None:
        """See Probe.checkpoint."""
        try:
            path = calls.checkpoint(door.address, timeout_seconds=timeout_seconds, by=_approach(door))
        except TrimtabError as error:
            _log.warning("no checkpoint", learner=door.address, error=str(error))
            return None
        _log.info("checkpoint written", learner=door.address, path=path)
        return self.learner(door) or LearnerFigures()

    def backlog(self, queue: Door, run_uid: str) -> Mapping[str, int] | None:
        """See Probe.backlog."""
        try:
            return asyncio.run(_backlog(queue, run_uid))
        except TrimtabError:
            return None

    def forget_keys(self, queue: Door, run_uid: str) -> str:
        """See Probe.forget_keys."""
        try:
            removed = asyncio.run(_forget(queue, run_uid))
        except TrimtabError as error:
            return " ".join(str(error).split())
        _log.info("keys removed", run_uid=run_uid, keys=removed)
        return ""

    def pods(self, pods: Mapping[str, tuple[str, int]]) -> Mapping[str, PodFigures]:
        """See Probe.pods."""
        return self._read(pods, pod_figures)

    def services(self, pods: Mapping[str, tuple[str, int]]) -> Mapping[str, ServiceFigures]:
        """See Probe.services."""
        return self._read(pods, service_figures)

    def _read(
        self, pods: Mapping[str, tuple[str, int]], figures_of: Callable[[str], Figures | None]
    ) -> dict[str, Figures]:
        asked = {name: self._pool.submit(self._page, *place) for name, place in pods.items()}
        pages = {name: future.result() for name, future in asked.items()}
        figures = {name: figures_of(page) for name, page in pages.items()}
        return {name: one for name, one in figures.items() if one is not None}

    def _page(self, address: str, port: int) -> str:
        """A metrics page; empty: it does not answer."""
        host = f"[{address}]" if ":" in address else address
        try:
            answer = self._http.request("GET", f"http://{host}:{port}/metrics", timeout=ANSWER_SECONDS)
        except (urllib3.exceptions.HTTPError, OSError):
            return ""
        return answer.data.decode(errors="replace") if answer.status == 200 else ""


def _approach(door: Door) -> calls.Approach:
    if door.pem is None:
        return calls.PLAIN
    credentials = grpc.ssl_channel_credentials(
        root_certificates=door.pem.authority.encode(),
        private_key=door.pem.private_key.encode() or None,
        certificate_chain=door.pem.certificate.encode() or None,
    )
    return calls.Approach(credentials, door.name)


def _tools(queue: Door, run_uid: str) -> RedisTools:
    tls = TlsFiles(authorities=queue.pem.authority) if queue.pem is not None else None
    return RedisTools(queue.address, run_uid, patience_seconds=ANSWER_SECONDS, tls=tls)


async def _forget(queue: Door, run_uid: str) -> int:
    tools = _tools(queue, run_uid)
    try:
        return await tools.forget()
    finally:
        await tools.close()


async def _backlog(queue: Door, run_uid: str) -> dict[str, int]:
    tools = _tools(queue, run_uid)
    try:
        scan = await tools.view()
    finally:
        await tools.close()
    return {service_of(view.stage): view.length for view in scan.stages}

"""The operator as one thing: connections, reflectors, controllers, election, wired from its configuration.

start ──▶ reflectors fill the store ──▶ synced ──▶ candidate ──▶ leads: workers work
stop  ──▶ workers end what they do ──▶ lease given back ──▶ watches end
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.control.resources import OWNERS, WATCHED, Ref, resources_with
from orchestrator.cluster.control.store import Store
from orchestrator.cluster.operator.checkpoints import Checkpoints
from orchestrator.cluster.operator.config import OperatorConfig
from orchestrator.cluster.operator.controller import Controller
from orchestrator.cluster.operator.elector import Elector
from orchestrator.cluster.operator.leftovers import Leftovers
from orchestrator.cluster.operator.metrics import OBJECTS, RUNS, WRITES
from orchestrator.cluster.operator.models import RewardModelReconciler
from orchestrator.cluster.operator.probe import Probe
from orchestrator.cluster.operator.reflector import ABSENT_SECONDS, Reflector
from orchestrator.cluster.operator.runs import RunReconciler
from orchestrator.cluster.operator.scaler import Scaler
from orchestrator.cluster.operator.secrets import RunSecrets
from orchestrator.cluster.operator.service_scaler import ServiceScaler
from orchestrator.cluster.operator.shared import make_tools
from services.common.errors import LostOwnership

OURS = "app.kubernetes.io/part-of=trimtab"
"""Only objects with this label are watched, of the kinds that are not ours alone."""
_log = structlog.get_logger(__name__)


class Operator:
    """`api` has no gate: reading, and the lease, are for everybody. Everything else is written through one that has."""

    def __init__(self, config: OperatorConfig, api: Api, probe: Probe) -> None:
        self.config, self.store = config, Store()
        api = api.speaking(resources_with(config.render.kueue_version))
        self._api, self._identity = api, config.who()
        # Counted when somebody asks: runs come and go by lists, watches and answers.
        OBJECTS.set_function(lambda: len(self.store))
        RUNS.set_function(lambda: len(self.store.all("TrainingRun")))
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._reflectors: list[Reflector] = []
        lease = Ref("Lease", config.home(), config.lease.name)
        self.elector = Elector(
            api, lease, self._identity, timing=config.lease.timing(), changed=self._leadership
        )
        gated = api.gated(self._gate, lambda kind, verb: WRITES.labels(kind, verb).inc())
        tools = make_tools(
            gated,
            self.store,
            self._identity,
            options=config.render.options(config.home()),
            status_seconds=config.status_seconds,
            kueue_unseen=self._kueue_unseen,
        )
        secrets = RunSecrets(gated)
        self._executor = ThreadPoolExecutor(max_workers=16, thread_name_prefix="checkpoint")
        checkpoints = Checkpoints(probe, self._executor, timeout_seconds=config.checkpoint_seconds)
        leftovers = Leftovers(tools, secrets, probe)
        self.runs = self._controller("runs", RunReconciler(tools, secrets, checkpoints, leftovers).handle)
        self.models = self._controller("models", RewardModelReconciler(tools).handle)
        scaler = Scaler(tools, probe, secrets, interval_seconds=config.scaling_seconds, told=self.runs.add)
        services = ServiceScaler(tools, probe, interval_seconds=config.scaling_seconds, told=self.models.add)
        self.services = self._controller("services", services.handle)
        # Its workers mostly wait for answers.
        self.scaler = Controller("scaler", scaler.handle, leads=self.leads, workers=4 * config.workers)

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Watch, wait for the first lists, then become a candidate. Returns at once; `ready` tells."""
        for namespace in self.config.namespaces or ("",):
            self._reflectors += [self._reflector(kind, namespace) for kind in (*WATCHED, "Workload")]
        self._threads += [reflector.start() for reflector in self._reflectors]
        self._threads.append(self._thread(self._begin, "begin"))

    def stop(self) -> None:
        """Workers end, the lease is free, watches are over: within `requests_seconds` and one request."""
        ends = time.monotonic() + self.config.requests_seconds
        self._stopping.set()
        self.elector.renew_no_more()
        for controller in self._controllers:
            controller.stop()
        for thread in [one for one in self._threads if one.name.split()[0] in _WORKERS]:
            thread.join(max(0.0, ends - time.monotonic()))
        if self.config.lease.enabled:
            self.elector.stop()
        for reflector in self._reflectors:
            reflector.stop()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def not_ready(self) -> str:
        """What is missing yet; empty: every list is there."""
        waiting = sorted({one.kind for one in self._reflectors if not one.settled})
        if not self._reflectors or waiting:
            return f"waiting for the first lists: {', '.join(waiting) or 'all'}"
        return ""

    def not_alive(self) -> str:
        """What has ended that should not have; empty: nothing."""
        dead = [one.name for one in self._threads if not one.is_alive() and one.name != "begin"]
        return f"threads have ended: {', '.join(dead)}" if dead and not self._stopping.is_set() else ""

    def leads(self) -> bool:
        """Whether this replica writes."""
        return not self._stopping.is_set() and (not self.config.lease.enabled or self.elector.leads())

    # ------------------------------------------------------------ wiring

    @property
    def _controllers(self) -> tuple[Controller, ...]:
        return self.runs, self.models, self.scaler, self.services

    def _gate(self) -> None:
        # A reconcile may end between any two of its writes: the next one goes on from what is there.
        if self._stopping.is_set():
            raise LostOwnership("this replica is ending")
        if self.config.lease.enabled:
            self.elector.check()

    def _controller(self, name: str, handle: Callable[[Ref], float | None]) -> Controller:
        return Controller(name, handle, leads=self.leads, workers=self.config.workers)

    def _reflector(self, kind: str, namespace: str) -> Reflector:
        selector = "" if kind in OWNERS else OURS
        return Reflector(
            self._api,
            self.store,
            self._changed,
            kind=kind,
            namespace=namespace,
            selector=selector,
            optional=kind == "Workload",
            absent_seconds=min(ABSENT_SECONDS, self.config.resync_seconds),
        )

    def _kueue_unseen(self, namespace: str) -> str:
        """Why nobody knows what Kueue says of runs there; empty: it is known."""
        found = [
            one for one in self._reflectors if one.kind == "Workload" and one.namespace in ("", namespace)
        ]
        why = next((one.unseen for one in found if one.unseen), "")
        return why and f"{why} (kueue.x-k8s.io/{self.config.render.kueue_version})"

    def _begin(self) -> None:
        while self.not_ready() and not self._stopping.wait(0.05):
            pass
        if self._stopping.is_set():
            return
        for controller in self._controllers:
            self._threads += controller.start()
        if self.config.lease.enabled:
            self._threads.append(self.elector.start())
        self._threads.append(self._thread(self._resync, "resync"))
        _log.info("caches are filled", objects=len(self.store), identity=self._identity)

    def _resync(self) -> None:
        """Look at everything now and then: a mistake of a watch, or of ours, must not last for ever."""
        while not self._stopping.is_set():
            for kind in OWNERS:
                for item in self.store.all(kind):
                    self._changed(Ref.of(item))
            self._stopping.wait(self.config.resync_seconds * random.uniform(0.9, 1.1))

    def _changed(self, owner: Ref) -> None:
        if owner.kind == "TrainingRun":
            self.runs.add(owner)
            self.scaler.add_after(owner, self.config.scaling_seconds * random.uniform(0.2, 1.0))
        else:
            self.models.add(owner)
            self.services.add_after(owner, self.config.scaling_seconds * random.uniform(0.2, 1.0))

    def _leadership(self, leads: bool) -> None:
        for controller in self._controllers:
            controller.wake()
        if leads:
            for kind in OWNERS:
                for item in self.store.all(kind):
                    self._changed(Ref.of(item))

    def _thread(self, run: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread


_WORKERS = ("runs", "models", "scaler", "services")

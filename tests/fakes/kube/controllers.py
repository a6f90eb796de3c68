"""Controllers for tests: a Deployment, StatefulSet or Job comes up by itself, or when the test says so.

Off until `start`; then each workload's status follows its spec, `pods` of it are made where asked, and a scale
down deletes them. There are no ReplicaSets: pods belong to the workload itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.fakes.kube import workloads
from tests.fakes.kube.decoding import Options, Target
from tests.fakes.kube.deletion import DeleteOptions, delete
from tests.fakes.kube.metadata import generated_name
from tests.fakes.kube.resources import BUILTIN
from tests.fakes.kube.store import Event, Object, Store, Stored
from tests.fakes.kube.worker import Worker
from tests.fakes.kube.writes import Writer

_BY_STORAGE = {each.qualified: each for each in BUILTIN}
DEPLOYMENTS, STATEFULSETS, JOBS, PODS = "deployments.apps", "statefulsets.apps", "jobs.batch", "pods"
_MANAGER = Options(manager="kube-controller-manager")


class Workloads:
    """What a test says about workloads. Works whether or not controllers run."""

    def __init__(self, writer: Writer, clock: Callable[[], str]) -> None:
        self.writer, self.clock = writer, clock
        self.store = writer.store

    def set_ready(self, deployment: str, ready: int, namespace: str = "default") -> None:
        """So many of its replicas are ready now."""
        self.write(
            DEPLOYMENTS,
            namespace,
            deployment,
            lambda obj: workloads.deployment_status(obj, ready, self.clock()),
        )

    def set_statefulset_ready(self, name: str, ready: int, namespace: str = "default") -> None:
        """So many of its replicas are ready now."""
        self.write(STATEFULSETS, namespace, name, lambda obj: workloads.statefulset_status(obj, ready))

    def run_job(self, name: str, namespace: str = "default", ready: int = 1_000_000) -> None:
        """Its pods run, `ready` of them at most are ready."""
        self.write(JOBS, namespace, name, lambda obj: workloads.job_running(obj, ready, self.clock()))

    def succeed_job(self, name: str, namespace: str = "default") -> None:
        """All its completions are there."""
        self.write(JOBS, namespace, name, lambda obj: workloads.job_succeeded(obj, self.clock()))

    def fail_job(
        self, name: str, namespace: str = "default", *, reason: str = "BackoffLimitExceeded",
        message: str = "Job has reached the specified backoff limit",
    ) -> None:  # fmt: skip
        """It has failed for good."""
        self.write(
            JOBS, namespace, name, lambda obj: workloads.job_failed(obj, self.clock(), reason, message)
        )

    def set_pod(self, name: str, namespace: str = "default", *, phase: str = "Running", ready: bool = True,
                node: str = "", **fields: Any) -> None:  # fmt: skip
        """A pod's phase; `node`: the one that it is bound to from now on."""
        with self.store.lock:
            stored = self.writer.current(Target(_BY_STORAGE[PODS], namespace, name))
            if node and not stored.obj["spec"].get("nodeName"):
                self.store.put(PODS, stored.obj | {"spec": stored.obj["spec"] | {"nodeName": node}})
        self.write(
            PODS, namespace, name, lambda obj: workloads.pod_status(obj, phase, ready, self.clock(), **fields)
        )

    def write(self, storage: str, namespace: str, name: str, status: Callable[[Object], Object]) -> Stored:
        """Write a status."""
        target = Target(_BY_STORAGE[storage], namespace, name, "status")
        with self.store.lock:
            old = self.writer.current(target)
            return self.writer.update(target, old.obj | {"status": status(old.obj)}, _MANAGER)[0]


class Controllers:
    """Bring workloads up by themselves. `ready` False: their pods are never ready."""

    def __init__(self, store: Store, writer: Writer, clock: Callable[[], str]) -> None:
        self.store, self.writer, self.clock = store, writer, clock
        self.workloads = Workloads(writer, clock)
        self.pods, self.ready = False, True
        self.running = False
        self.worker = Worker(store, "kube-controllers", self._look)
        store.listeners.append(self._seen)

    def start(self, *, pods: bool = False, ready: bool = True) -> None:
        """Begin with what is there."""
        with self.store.lock:
            self.pods, self.ready, self.running = pods, ready, True
            for storage in (DEPLOYMENTS, STATEFULSETS, JOBS):
                for stored in self.store.each(storage):
                    self.worker.add((storage, stored.namespace, stored.name))

    def stop(self) -> None:
        """Leave everything as it is."""
        with self.store.lock:
            self.running = False

    def _seen(self, event: Event) -> None:
        if not self.running:
            return
        if event.storage in (DEPLOYMENTS, STATEFULSETS, JOBS):
            self.worker.add((event.storage, event.stored.namespace, event.stored.name))
        if event.storage == PODS and event.type == "DELETED":
            for owner in event.stored.obj["metadata"].get("ownerReferences", ()):
                storage = {"Deployment": DEPLOYMENTS, "StatefulSet": STATEFULSETS, "Job": JOBS}.get(
                    owner["kind"]
                )
                if storage:
                    self.worker.add((storage, event.stored.namespace, owner["name"]))

    def _look(self, key: tuple[str, str, str]) -> None:
        storage, namespace, name = key
        stored = self.store.get(storage, namespace, name)
        if stored is None or stored.obj["metadata"].get("deletionTimestamp") or not self.running:
            return
        if storage == JOBS:
            self._job(stored)
            return
        wanted = stored.obj["spec"].get("replicas", 1)
        if self.pods:
            self._scale_pods(stored, wanted, ordered=storage == STATEFULSETS)
        ready = wanted if self.ready else 0
        if storage == DEPLOYMENTS:
            self.workloads.set_ready(name, ready, namespace)
        else:
            self.workloads.set_statefulset_ready(name, ready, namespace)

    def _job(self, stored: Stored) -> None:
        obj = stored.obj
        if workloads.is_finished(obj):
            return
        if obj["spec"].get("suspend"):
            self.workloads.write(
                JOBS, stored.namespace, stored.name, lambda job: workloads.job_suspended(job, self.clock())
            )
            self._scale_pods(stored, 0)
            return
        if self.pods:
            self._scale_pods(
                stored,
                obj["spec"].get("parallelism", 1),
                indexed=obj["spec"].get("completionMode") == "Indexed",
            )
        self.workloads.run_job(stored.name, stored.namespace, 1_000_000 if self.ready else 0)

    def _scale_pods(
        self, owner: Stored, wanted: int, *, ordered: bool = False, indexed: bool = False
    ) -> None:
        """Make or delete pods until there are as many as wanted."""
        uid = owner.obj["metadata"]["uid"]
        there = [
            each for each in self.store.each(PODS, owner.namespace)
            if any(ref["uid"] == uid for ref in each.obj["metadata"].get("ownerReferences", ()))
        ]  # fmt: skip
        for each in there[wanted:]:
            target = Target(_BY_STORAGE[PODS], each.namespace, each.name)
            delete(self.store, target, each, DeleteOptions(grace=0), self.clock())
        for place in range(len(there), wanted):
            self._make_pod(owner.obj, place, ordered=ordered, indexed=indexed)

    def _make_pod(self, owner: Object, place: int, *, ordered: bool, indexed: bool) -> None:
        suffix = str(place) if ordered else (generated_name(f"{place}-") if indexed else generated_name(""))
        pod = workloads.pod_of(owner, suffix, place if indexed else None)
        meta = pod["metadata"]
        target = Target(_BY_STORAGE[PODS], meta["namespace"])
        self.writer.create(target, pod, _MANAGER)
        if self.ready:
            self.workloads.set_pod(meta["name"], meta["namespace"])

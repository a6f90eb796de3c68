"""The server: starts, stops, and what a test may do to it from within its own process.

with KubeServer() as server:
    core = kubernetes.client.CoreV1Api(server.client())
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fakes.kube.api import Api, utc_now
from tests.fakes.kube.catalog import CRDS, Catalog
from tests.fakes.kube.collector import Collector
from tests.fakes.kube.controllers import Controllers
from tests.fakes.kube.decoding import Options, Target
from tests.fakes.kube.faults import Calls
from tests.fakes.kube.resources import Resource
from tests.fakes.kube.store import Event, Object, Store, Stored
from tests.fakes.kube.wire import Server

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


class KubeServer:
    """A Kubernetes API server on loopback, in threads of this process.

    `history`: events per resource that watches can begin from. `bookmark_seconds`: of silence on a watch.
    """

    def __init__(
        self, *, history: int = 10_000, bookmark_seconds: float = 1.0, clock: Callable[[], str] = utc_now
    ) -> None:
        self.store = Store(history)
        self.catalog = Catalog()
        self.calls = Calls()
        self.clock = clock
        self.api = Api(self.store, self.catalog, self.calls, clock, bookmark_seconds)
        self.collector = Collector(self.store, self.catalog, clock)
        self.controllers = Controllers(self.store, self.api.writer, clock)
        self.workloads = self.controllers.workloads
        self._http = Server(self.api.answer)
        self.store.listeners.append(self._define)
        for name in _NAMESPACES:
            self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    @property
    def url(self) -> str:
        """http://127.0.0.1:port"""
        return self._http.url

    def __enter__(self) -> KubeServer:
        self.collector.worker.start()
        self.controllers.worker.start()
        self._http.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.store.end_watches()
        self._http.stop()
        self.collector.worker.stop()
        self.controllers.worker.stop()

    def client(self) -> ApiClient:
        """The official client, speaking to this server."""
        from kubernetes import client

        return client.ApiClient(client.Configuration(host=self.url))

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig for it."""
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": "default"}}],
        }  # fmt: skip
        path.write_text(json.dumps(content))
        return path

    def create(self, obj: Object, *, manager: str = "test") -> Object:
        """Create an object without HTTP; returned as it is stored."""
        resource = self._resource(obj)
        namespace = obj["metadata"].get("namespace", "default") if resource.namespaced else ""
        return self.api.writer.create(Target(resource, namespace), obj, Options(manager=manager)).obj

    def load(self, objects: Iterable[Object]) -> None:
        """Create many."""
        for obj in objects:
            self.create(obj)

    def get(self, kind: str, name: str, namespace: str = "default") -> Object | None:
        """An object without HTTP, as it is stored; not to be changed."""
        resource = self.resource(kind)
        found = self.store.get(resource.storage, namespace if resource.namespaced else "", name)
        return found.obj if found else None

    def list(self, kind: str, namespace: str | None = None) -> list[Object]:
        """All objects of a kind."""
        with self.store.lock:
            return [stored.obj for stored in self.store.each(self.resource(kind).storage, namespace)]

    def resource(self, kind: str) -> Resource:
        """By kind (Deployment) or plural (deployments)."""
        return self.catalog.named(kind)

    def _resource(self, obj: Object) -> Resource:
        found = self.catalog.of_kind(obj["apiVersion"], obj["kind"])
        if found is None:
            raise LookupError(f"not served: {obj['apiVersion']} {obj['kind']}")
        return found

    def set_status(self, kind: str, name: str, namespace: str = "default", **fields: Any) -> Stored:
        """Set fields of an object's status, as a controller would."""
        resource = self.resource(kind)
        target = Target(resource, namespace if resource.namespaced else "", name, "status")
        with self.store.lock:
            old = self.api.writer.current(target)
            new = old.obj | {"status": (old.obj.get("status") or {}) | fields}
            return self.api.writer.update(target, new, Options(manager="kube-controller-manager"))[0]

    def settle(self) -> None:
        """Wait until the collector and the controllers have nothing left to do."""
        self.controllers.worker.settle()
        self.collector.worker.settle()

    def compact(self) -> None:
        """Forget the history: watches and pages that begin before now are answered 410."""
        self.store.compact()
        self.api.lister.forget()

    def drop_watches(self) -> int:
        """Cut all open watches; how many."""
        return self.store.end_watches()

    def drop_connections(self) -> None:
        """Cut all connections, as a restart would."""
        self._http.cut()

    def _define(self, event: Event) -> None:
        """Serve what a CRD defines from the moment it is there."""
        if event.storage != CRDS:
            return
        if event.type == "DELETED":
            self.catalog.drop(event.stored.obj)
        else:
            self.catalog.define(event.stored.obj)

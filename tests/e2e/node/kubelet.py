"""Ties a node together: the pods bound to it, the names it answers, its heartbeat, its logs. Decides about no pod."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.node import dns, logs
from tests.e2e.node.api import Api, ApiError
from tests.e2e.node.container import now
from tests.e2e.node.launching import Host
from tests.e2e.node.pod import Pod
from tests.e2e.node.process import image_env
from tests.e2e.node.registration import LOG_PORT, NodeSpec, Registration

Object = Mapping[str, Any]
END_SECONDS = 10.0


class Addresses:
    """Of one network: the first is the node's, pods have the others, each again as late as possible."""

    def __init__(self, network: str) -> None:
        hosts = [str(host) for host in ipaddress.ip_network(network).hosts()]
        self.node, self._free = hosts[0], hosts[1:]

    def take(self) -> str:
        """One for a pod."""
        return self._free.pop(0)

    def give_back(self, address: str) -> None:
        """It is free again."""
        self._free.append(address)


class Kubelet:
    """The node. `dns_port` and `log_port` 0: not served."""

    def __init__(
        self, api: Api, spec: NodeSpec, addresses: Addresses, folder: Path, *, dns_port: int = 53,
        log_port: int = LOG_PORT, tls: bool = True,
    ) -> None:  # fmt: skip
        self._api, self._spec, self._addresses = api, spec, addresses
        self._dns_port, self._log_port, self._tls = dns_port, log_port, tls
        self._host = Host(
            api=api,
            name=spec.name,
            address=spec.address,
            folder=folder,
            capacity=spec.capacity,
            env=image_env(),
            event=self._event,
        )
        self.names = dns.Names()
        self.pods: dict[str, Pod] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._finished: set[str] = set()
        """Pods that were here: what is still told of them begins nothing."""
        self._ending = False

    async def run(self, ending: asyncio.Event) -> None:
        """Until told to end; then its processes end, and it leaves the cluster."""
        registration = Registration(self._api, self._spec)
        transport = (
            await dns.serve(self.names, self._spec.address, self._dns_port) if self._dns_port else None
        )
        server = (
            await logs.serve(self._log, self._spec.address, self._log_port, tls=self._tls)
            if self._log_port
            else None
        )
        await registration.register()
        print(f"node {self._spec.name}: {self._spec.address}, ready", flush=True)
        watches = [
            asyncio.create_task(registration.keep_alive()),
            asyncio.create_task(self._api.follow("/api/v1/services", self._put_service, self._drop_service)),
            asyncio.create_task(self._api.follow("/api/v1/pods", self._put_pod, self._drop_pod)),
        ]
        try:
            await ending.wait()
        finally:
            self._ending = True
            for task in watches:
                task.cancel()
            await self._end_pods()
            with contextlib.suppress(ApiError):
                await registration.remove()
            if transport is not None:
                transport.close()
            if server is not None:
                server.close()

    async def _end_pods(self) -> None:
        for pod in self.pods.values():
            pod.vanish()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=END_SECONDS)

    # ------------------------------------------------------------ what the cluster says

    def _put_service(self, item: Object) -> None:
        self.names.services[_key(item)] = item

    def _drop_service(self, item: Object) -> None:
        self.names.services.pop(_key(item), None)

    def _put_pod(self, item: Object) -> None:
        self.names.pods[_key(item)] = item
        if item["spec"].get("nodeName") != self._spec.name or self._ending:
            return
        uid = item["metadata"]["uid"]
        if uid in self._finished:
            return
        pod = self.pods.get(uid)
        if pod is not None:
            pod.update(item)
            return
        pod = self.pods[uid] = Pod(self._host, item, self._addresses.take())
        task = self._tasks[uid] = asyncio.create_task(pod.run())
        task.add_done_callback(lambda done: self._done(uid, done))

    def _drop_pod(self, item: Object) -> None:
        self.names.pods.pop(_key(item), None)
        self._finished.discard(item["metadata"]["uid"])
        pod = self.pods.get(item["metadata"]["uid"])
        if pod is not None:
            pod.vanish()

    def _done(self, uid: str, task: asyncio.Task[None]) -> None:
        pod = self.pods.pop(uid)
        self._finished.add(uid)
        self._tasks.pop(uid, None)
        self._addresses.give_back(pod.address)
        if not task.cancelled() and (error := task.exception()) is not None:
            print(f"pod {pod.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            pod.vanish()

    def _log(self, namespace: str, name: str, container: str, previous: bool) -> Path | None:
        for pod in self.pods.values():
            if pod.name == f"{namespace}/{name}":
                for one in (*pod.containers, *pod.init):
                    if one.spec["name"] == container:
                        before = one.log.with_name(f"{one.state.restarts - 1}.log")
                        return before if previous else one.log
        return None

    # ------------------------------------------------------------ what it says

    def _event(self, pod: Object, kind: str, reason: str, message: str) -> None:
        task = asyncio.create_task(self._send_event(pod, kind, reason, message))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send_event(self, pod: Object, kind: str, reason: str, message: str) -> None:
        meta, time = pod["metadata"], now()
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name'][:200]}.{uuid.uuid4().hex[:16]}", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "name": meta["name"], "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "type": kind, "reason": reason, "message": message[:1000], "count": 1,
            "firstTimestamp": time, "lastTimestamp": time,
            "source": {"component": "kubelet", "host": self._spec.name},
        }  # fmt: skip
        with contextlib.suppress(ApiError):
            await self._api.create(f"/api/v1/namespaces/{meta['namespace']}/events", event)


def _key(item: Object) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]

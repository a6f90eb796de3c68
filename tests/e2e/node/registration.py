"""The Node object and its Lease: registered, kept alive, removed. Knows no pod."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.e2e.node.api import Api, ApiError
from tests.e2e.node.container import now

LEASE_SECONDS, RENEW_SECONDS = 40, 10.0
LOG_PORT = 10250
VERSION = "v1.36.0"
"""Of the kubelet whose manners these are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """What a node is registered with."""

    name: str
    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[Mapping[str, str]] = ()
    capacity: Mapping[str, str] = field(default_factory=dict)

    def to_node(self) -> dict[str, Any]:
        """The object without its status."""
        system = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "amd64"),
        }
        taints = {"taints": [dict(taint) for taint in self.taints]} if self.taints else {}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": {**system, **self.labels}},
            "spec": taints,
        }

    def to_status(self, conditions_since: str, heartbeat: str) -> dict[str, Any]:
        """Ready, and how much there is."""
        states = {"Ready": "True", "MemoryPressure": "False", "DiskPressure": "False", "PIDPressure": "False"}
        conditions = [
            {
                "type": kind,
                "status": status,
                "reason": "KubeletReady" if kind == "Ready" else f"KubeletHasNo{kind}",
                "message": "processes of this machine",
                "lastHeartbeatTime": heartbeat,
                "lastTransitionTime": conditions_since,
            }
            for kind, status in states.items()
        ]
        return {
            "capacity": dict(self.capacity),
            "allocatable": dict(self.capacity),
            # No host name: API servers would look it up, to ask for logs.
            "addresses": [{"type": "InternalIP", "address": self.address}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": LOG_PORT}},
            "conditions": conditions,
            "nodeInfo": {
                "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": platform.release(),
                "osImage": "processes, no images", "containerRuntimeVersion": "process://1",
                "kubeletVersion": VERSION, "kubeProxyVersion": "", "operatingSystem": "linux",
                "architecture": "amd64",
            },
        }  # fmt: skip


class Registration:
    """The node at the API server."""

    def __init__(self, api: Api, spec: NodeSpec) -> None:
        self._api, self._spec = api, spec
        self._since = now()
        self._uid = ""

    async def register(self) -> None:
        """Make the Node, or take over one of this name; Ready from now on."""
        path = f"/api/v1/nodes/{self._spec.name}"
        node = self._spec.to_node()
        if await self._api.find(path) is None:
            await self._api.create("/api/v1/nodes", node)
        else:
            await self._api.patch(
                path, {"metadata": {"labels": node["metadata"]["labels"]}, "spec": node["spec"]}
            )
        written = await self._api.patch(
            f"{path}/status", {"status": self._spec.to_status(self._since, now())}
        )
        self._uid = written["metadata"]["uid"]
        await self._renew()

    async def keep_alive(self) -> None:
        """Renew the Lease for ever; the status now and then."""
        turn = 0
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            turn += 1
            try:
                await self._renew()
                if turn % 6 == 0:
                    status = self._spec.to_status(self._since, now())
                    await self._api.patch(f"/api/v1/nodes/{self._spec.name}/status", {"status": status})
            except ApiError as error:
                print(f"heartbeat: {error}", file=sys.stderr, flush=True)

    async def remove(self) -> None:
        """The node goes; the pods on it are collected by the control plane."""
        await self._api.delete(
            f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{self._spec.name}"
        )
        await self._api.delete(f"/api/v1/nodes/{self._spec.name}")

    async def _renew(self) -> None:
        leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        spec = {
            "holderIdentity": self._spec.name,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        try:
            await self._api.patch(f"{leases}/{self._spec.name}", {"spec": spec})
        except ApiError as error:
            if error.status != 404:
                raise
            owner = {"apiVersion": "v1", "kind": "Node", "name": self._spec.name, "uid": self._uid}
            metadata = {"name": self._spec.name, "namespace": "kube-node-lease", "ownerReferences": [owner]}
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": metadata,
                "spec": spec,
            }
            await self._api.create(leases, lease)


def machine_capacity(gpus: int, given: Mapping[str, str]) -> dict[str, str]:
    """This machine's, overridden by what is given. GPUs are a number that the scheduler counts, no devices."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    found = {
        "cpu": str(os.cpu_count() or 1),
        "memory": f"{pages * size // 1024}Ki",
        "ephemeral-storage": "100Gi",
        "pods": "110",
        **({"nvidia.com/gpu": str(gpus)} if gpus else {}),
    }
    return {**found, **given}

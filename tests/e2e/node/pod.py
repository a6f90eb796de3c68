"""One pod from its binding to its end: volumes, init containers, containers, status, deletion. Knows no other pod."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.node.api import Api, ApiError
from tests.e2e.node.container import RETRY_SECONDS, Container, Setting, now
from tests.e2e.node.dns import resolv_conf
from tests.e2e.node.environment import Missing, command_of, variables_of
from tests.e2e.node.process import Launch, Mount
from tests.e2e.node.status import conditions_of, phase_of
from tests.e2e.node.volumes import Volumes

Object = Mapping[str, Any]
FINAL = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What a pod needs to know of its node."""

    api: Api
    name: str
    address: str
    folder: Path
    capacity: Mapping[str, str]
    env: Mapping[str, str]
    """Of all images."""
    event: Callable[[Object, str, str, str], None]


class Pod:
    """A pod bound to this node, and the task that carries it out."""

    def __init__(self, host: Host, item: Object, address: str) -> None:
        self.item, self.address = item, address
        self._host = host
        meta = item["metadata"]
        self.folder = host.folder / "pods" / f"{meta['namespace']}_{meta['name']}_{meta['uid'][:8]}"
        self._volumes = Volumes(host.api, self.folder / "volumes", host.capacity)
        self._policy = item["spec"].get("restartPolicy") or "Always"
        self._before = item.get("status") or {}
        restarts = {
            one["name"]: one.get("restartCount", 0) + 1
            for kind in ("containerStatuses", "initContainerStatuses")
            for one in self._before.get(kind) or ()
            if one.get("containerID")
        }
        self.init = [self._container(spec, restarts) for spec in item["spec"].get("initContainers") or ()]
        self.containers = [self._container(spec, restarts) for spec in item["spec"]["containers"]]
        self._dirty, self._deleting = asyncio.Event(), asyncio.Event()
        self._initialised = not self.init
        self._prepared = self._stopped = self._gone = False
        self._failed = ""
        self._start_time = self._before.get("startTime") or now()
        self.update(item)

    @property
    def name(self) -> str:
        """namespace/name."""
        return f"{self.item['metadata']['namespace']}/{self.item['metadata']['name']}"

    def update(self, item: Object) -> None:
        """A newer state of the object."""
        self.item = item
        if item["metadata"].get("deletionTimestamp"):
            self._deleting.set()
        if self._prepared:
            self._volumes.refresh(self._seen())

    def vanish(self) -> None:
        """The object is gone: nothing of it may go on."""
        self._gone = True
        self._deleting.set()
        for one in (*self.containers, *self.init):
            one.kill()

    async def run(self) -> None:
        """Until the object is gone."""
        phase = self._before.get("phase")
        if phase in FINAL:
            await self._deleting.wait()
        else:
            writing = asyncio.create_task(self._write_changes())
            try:
                # A container cannot be taken over from a node that has ended: one that may not restart has failed.
                if phase == "Running" and self._policy == "Never":
                    self._failed = "NodeRestarted"
                    self._changed()
                    await self._deleting.wait()
                else:
                    await self._live_until_deleted()
            finally:
                writing.cancel()
        if not self._gone:
            await self._confirm()
        self._volumes.remove()

    def stop_now(self) -> None:
        """The node ends: the processes, not the object."""
        for one in (*self.containers, *self.init):
            one.kill()

    async def _live_until_deleted(self) -> None:
        living = asyncio.create_task(self._live())
        deleting = asyncio.create_task(self._deleting.wait())
        try:
            await asyncio.wait({living, deleting}, return_when=asyncio.FIRST_COMPLETED)
            if not deleting.done():
                living.result()
                await self._deleting.wait()
            await self._stop_all()
            await living
        finally:
            living.cancel()
            deleting.cancel()

    # ------------------------------------------------------------ life

    async def _live(self) -> None:
        """Through all containers' ends."""
        self._changed()
        while not await self._prepare():
            await asyncio.sleep(RETRY_SECONDS)
            if self._deleting.is_set():
                return
        side: list[asyncio.Task[None]] = []
        sidecars = []
        for one in self.init:
            if one.spec.get("restartPolicy") == "Always":
                side.append(asyncio.create_task(one.run()))
                sidecars.append(one)
                await self._either(one.started.wait())
            else:
                await one.run()
                if one.state.exit_code != 0 and not self._deleting.is_set():
                    self._failed = "InitContainerFailed"
            if self._failed or self._deleting.is_set():
                break
        else:
            self._initialised = True
            self._changed()
            await asyncio.gather(*(one.run() for one in self.containers))
        if not self._deleting.is_set():
            await self._stop_in_turn(sidecars[::-1], self._grace)
        await asyncio.gather(*side)
        self._changed()

    async def _either(self, wanted: Awaitable[Any]) -> None:
        """Until it is so, or the pod is deleted."""
        tasks = {asyncio.ensure_future(wanted), asyncio.create_task(self._deleting.wait())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def _prepare(self) -> bool:
        try:
            await self._volumes.prepare(self._seen())
        except (Missing, ApiError, OSError) as error:
            for one in (*self.init, *self.containers):
                one.state.message = str(error)
            self._host.event(self.item, "Warning", "FailedMount", str(error))
            self._changed()
            return False
        self._write_names()
        self._prepared = True
        for one in (*self.init, *self.containers):
            one.state.message = ""
        if self._initialised is False:
            for one in self.containers:
                one.state.waiting = "PodInitializing"
        self._changed()
        return True

    @property
    def _grace(self) -> float:
        meta = self.item["metadata"]
        given = meta.get("deletionGracePeriodSeconds")
        return float(self.item["spec"].get("terminationGracePeriodSeconds", 30) if given is None else given)

    async def _stop_all(self) -> None:
        """Containers together, then what ran beside them in reverse order, within one grace period."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._grace
        await asyncio.gather(*(one.stop(self._grace) for one in self.containers))
        await self._stop_in_turn(self.init[::-1], ends - loop.time())

    async def _stop_in_turn(self, containers: Sequence[Container], grace: float) -> None:
        for one in containers:
            await one.stop(max(grace, 2.0))

    def _container(self, spec: Object, restarts: Mapping[str, int]) -> Container:
        setting = Setting(
            pod=self.name,
            address=self.address,
            policy=self._policy if spec in self.item["spec"]["containers"] else _init_policy(self._policy),
            grace=float(self.item["spec"].get("terminationGracePeriodSeconds", 30)),
            logs=self.folder / "logs",
            prepare=self._launch,
            changed=self._changed,
            event=lambda kind, reason, message: self._host.event(self.item, kind, reason, message),
        )
        return Container(spec, setting, restarts.get(spec["name"], 0))

    async def _launch(self, spec: Object) -> Launch:
        pod, found = self._seen(), await self._referred(spec)
        host, port = self._host.api.place
        base = {
            **self._host.env,
            "HOSTNAME": self._hostname,
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": str(port),
            "KUBERNETES_SERVICE_PORT_HTTPS": str(port),
        }
        env = variables_of(pod, spec, base, lambda kind, name: found.get((kind, name)))
        security = {**(pod["spec"].get("securityContext") or {}), **(spec.get("securityContext") or {})}
        uid, group = security.get("runAsUser", 0), security.get("fsGroup")
        if security.get("runAsNonRoot") and not uid:
            raise Missing("runAsNonRoot needs runAsUser: there is no image to take it from")
        groups = [*security.get("supplementalGroups", ()), *([] if group is None else [group])]
        return Launch(
            argv=command_of(spec, env),
            env=env,
            root=self.folder / "root" / spec["name"],
            mounts=[*self._names_files(), *self._volumes.mounts(spec, env)],
            cwd=spec.get("workingDir") or "/",
            hostname=self._hostname,
            uid=uid,
            gid=security.get("runAsGroup", 0),
            groups=groups,
            read_only_root=bool(security.get("readOnlyRootFilesystem")),
        )

    async def _referred(self, spec: Object) -> dict[tuple[str, str], Object]:
        """The ConfigMaps and Secrets that its variables name."""
        wanted = set()
        for source in spec.get("envFrom") or ():
            for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                wanted |= {(kind, source[key]["name"])} if key in source else set()
        for entry in spec.get("env") or ():
            for key, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                reference = (entry.get("valueFrom") or {}).get(key)
                wanted |= {(kind, reference["name"])} if reference else set()
        found: dict[tuple[str, str], Object] = {}
        for kind, name in wanted:
            plural = {"ConfigMap": "configmaps", "Secret": "secrets"}[kind]
            try:
                item = await self._host.api.find(
                    f"/api/v1/namespaces/{self.item['metadata']['namespace']}/{plural}/{name}"
                )
            except ApiError as error:
                raise Missing(str(error)) from None
            if item is not None:
                found[kind, name] = {**item, "kind": kind}
        return found

    # ------------------------------------------------------------ names

    @property
    def _hostname(self) -> str:
        return str(self.item["spec"].get("hostname") or self.item["metadata"]["name"])

    def _write_names(self) -> None:
        namespace = self.item["metadata"]["namespace"]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "resolv.conf").write_text(resolv_conf(self._host.address, namespace))
        full = f"{self._hostname}.{self.item['spec'].get('subdomain', '')}.{namespace}.svc.cluster.local"
        names = f"{full} {self._hostname}" if self.item["spec"].get("subdomain") else self._hostname
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {names}\n")

    def _names_files(self) -> list[Mount]:
        return [
            Mount(source=self.folder / name, target=f"/etc/{name}", read_only=True)
            for name in ("resolv.conf", "hosts")
        ]

    # ------------------------------------------------------------ status

    def _seen(self) -> Object:
        """The object with the addresses that it will have."""
        status = {**(self.item.get("status") or {}), "podIP": self.address, "hostIP": self._host.address}
        return {**self.item, "status": status}

    def _changed(self) -> None:
        self._dirty.set()

    def status(self) -> dict[str, Any]:
        """As it is now."""
        states = [one.state for one in self.containers]
        phase = phase_of(self._policy, states, initialised=self._initialised, stopped=self._stopped)
        why = {}
        if self._failed:
            phase, why = "Failed", {"reason": self._failed}
        ready = phase == "Running" and all(state.ready for state in states)
        before = (self.item.get("status") or {}).get("conditions") or ()
        conditions = conditions_of(
            before, now(), initialised=self._initialised, ready=ready, phase=phase, networked=self._prepared
        )
        return {
            "phase": phase,
            "conditions": conditions,
            "startTime": self._start_time,
            "hostIP": self._host.address,
            "hostIPs": [{"ip": self._host.address}],
            "podIP": self.address,
            "podIPs": [{"ip": self.address}],
            "containerStatuses": [state.to_status() for state in states],
            **({"initContainerStatuses": [one.state.to_status() for one in self.init]} if self.init else {}),
            **why,
        }

    async def _write_changes(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._write_status()
            except ApiError as error:
                if error.status in (404, 409):
                    continue
                self._dirty.set()
                await asyncio.sleep(0.5)
            await asyncio.sleep(0.05)

    async def _write_status(self) -> None:
        meta = self.item["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        status = self.status()
        if "reason" not in status and self._before.get("reason"):
            status["reason"] = None
        written = await self._host.api.patch(
            f"{path}/status", {"metadata": {"uid": meta["uid"]}, "status": status}
        )
        if int(written["metadata"]["resourceVersion"]) > int(self.item["metadata"]["resourceVersion"]):
            self.update(written)

    async def _confirm(self) -> None:
        """The last status, then the object goes."""
        meta = self.item["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        if (self._before.get("phase")) not in FINAL:
            self._stopped = True
            while True:
                try:
                    await self._write_status()
                    break
                except ApiError as error:
                    if error.status in (404, 409):
                        break
                    await asyncio.sleep(0.5)
        while not self._gone:
            with contextlib.suppress(ApiError):
                await self._host.api.delete(path, grace=0, uid=meta["uid"])
                return
            await asyncio.sleep(0.5)


def _init_policy(policy: str) -> str:
    return "OnFailure" if policy == "Always" else policy

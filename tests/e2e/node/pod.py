"""One pod from its binding to its end: volumes, init containers, containers, status, deletion. Knows no other pod."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from tests.e2e.node.api import ApiError
from tests.e2e.node.container import RETRY_SECONDS, Container, Setting, now
from tests.e2e.node.environment import Missing
from tests.e2e.node.launching import Host, make_launch, write_names
from tests.e2e.node.process import Launch
from tests.e2e.node.status import conditions_of, phase_of
from tests.e2e.node.volumes import Volumes

Object = Mapping[str, Any]
FINAL = ("Succeeded", "Failed")


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
            if self.containers[0].state.message != str(error):
                for one in (*self.init, *self.containers):
                    one.state.message = str(error)
                self._host.event(self.item, "Warning", "FailedMount", str(error))
                self._changed()
            return False
        write_names(self._host, self._seen(), self.folder)
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
        return await make_launch(self._host, self._seen(), spec, self._volumes, self.folder)

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
        if self._stopped and phase == "Pending":
            phase = "Failed"
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
        if self._before.get("phase") not in FINAL:
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

"""A pod's volumes as folders of this machine, and what each container mounts of them. Starts nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.node.api import Api
from tests.e2e.node.environment import Missing, content_of, expand, field_of, resource_of
from tests.e2e.node.process import Mount

Object = Mapping[str, Any]
TOKEN_SECONDS = 86_400
"""Longer than a test lasts: tokens are not renewed."""


class Volumes:
    """All volumes of one pod below `folder`. `capacity`: the node's, for resourceFieldRef."""

    def __init__(self, api: Api, folder: Path, capacity: Mapping[str, str]) -> None:
        self._api, self._folder, self._capacity = api, folder, capacity
        self._paths: dict[str, Path] = {}

    async def prepare(self, pod: Object) -> None:
        """Make them all. Raises Missing while something is not there."""
        for volume in pod["spec"].get("volumes") or ():
            if volume["name"] not in self._paths:
                self._paths[volume["name"]] = await self._make(pod, volume)

    def refresh(self, pod: Object) -> None:
        """Write downwardAPI files anew where labels or annotations changed; each file at once."""
        for volume in pod["spec"].get("volumes") or ():
            if volume["name"] in self._paths:
                sources = [volume, *(volume.get("projected") or {}).get("sources", ())]
                for source in sources:
                    if "downwardAPI" in source:
                        self._fields(pod, source["downwardAPI"], self._paths[volume["name"]])

    def mounts(self, container: Object, env: Mapping[str, str]) -> list[Mount]:
        """What a container sees of them."""
        made = []
        for mount in container.get("volumeMounts") or ():
            source = self._paths[mount["name"]]
            inner = mount.get("subPath") or expand(mount.get("subPathExpr") or "", env)
            if inner:
                below = source / inner
                if not below.exists():
                    below.mkdir(parents=True)
                    shutil.copystat(source, below)
                    os.chown(below, -1, source.stat().st_gid)
                source = below
            made.append(
                Mount(source=source, target=mount["mountPath"], read_only=bool(mount.get("readOnly")))
            )
        return made

    def remove(self) -> None:
        """What lived with the pod goes with it; claims and folders of the machine stay."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _make(self, pod: Object, volume: Object) -> Path:
        security = pod["spec"].get("securityContext") or {}
        group = security.get("fsGroup")
        if "hostPath" in volume:
            return self._host_path(volume["hostPath"])
        if "persistentVolumeClaim" in volume:
            path = await self._claim(pod, volume["persistentVolumeClaim"]["claimName"])
            _give_to_group(path, group, everything=True)
            return path
        path = self._folder / volume["name"]
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o777 if "emptyDir" in volume else 0o755)
        if "emptyDir" in volume:
            _give_to_group(path, group, everything=False)
            return path
        await self._fill(pod, volume, path)
        return path

    async def _fill(self, pod: Object, volume: Object, path: Path) -> None:
        if "configMap" in volume:
            await self._keys(pod, "ConfigMap", volume["configMap"], volume["configMap"].get("name"), path)
        elif "secret" in volume:
            await self._keys(pod, "Secret", volume["secret"], volume["secret"].get("secretName"), path)
        elif "downwardAPI" in volume:
            self._fields(pod, volume["downwardAPI"], path)
        elif "projected" in volume:
            mode = volume["projected"].get("defaultMode")
            for source in volume["projected"]["sources"]:
                await self._project(pod, source, mode, path)
        else:
            kind = next((key for key in volume if key != "name"), "nothing")
            raise Missing(f"volume {volume['name']}: there is no {kind} on this node")

    async def _project(self, pod: Object, source: Object, mode: int | None, path: Path) -> None:
        if "serviceAccountToken" in source:
            wanted = source["serviceAccountToken"]
            self._write(pod, path / wanted["path"], (await self._token(pod, wanted)).encode(), 0o600)
        elif "downwardAPI" in source:
            self._fields(pod, source["downwardAPI"], path)
        else:
            kind, key = ("ConfigMap", "configMap") if "configMap" in source else ("Secret", "secret")
            await self._keys(pod, kind, {"defaultMode": mode, **source[key]}, source[key]["name"], path)

    async def _keys(self, pod: Object, kind: str, source: Object, name: str | None, path: Path) -> None:
        plural = {"ConfigMap": "configmaps", "Secret": "secrets"}[kind]
        item = await self._api.find(f"/api/v1/namespaces/{pod['metadata']['namespace']}/{plural}/{name}")
        if item is None:
            if source.get("optional"):
                return
            raise Missing(f"{kind} {name} not found")
        content = content_of({**item, "kind": kind})
        default = source.get("defaultMode") or 0o644
        items = source.get("items") or [{"key": key, "path": key} for key in content]
        for entry in items:
            if entry["key"] not in content:
                if source.get("optional"):
                    continue
                raise Missing(f"{kind} {name} has no {entry['key']}")
            self._write(pod, path / entry["path"], content[entry["key"]], entry.get("mode") or default)

    def _fields(self, pod: Object, source: Object, path: Path) -> None:
        for entry in source.get("items") or ():
            if "fieldRef" in entry:
                text = field_of(pod, entry["fieldRef"]["fieldPath"])
            else:
                reference = entry["resourceFieldRef"]
                named = (
                    one for one in pod["spec"]["containers"] if one["name"] == reference["containerName"]
                )
                text = resource_of(next(named), reference, self._capacity)
            file = path / entry["path"]
            if not file.exists() or file.read_text() != text:
                self._write(pod, file, text.encode(), entry.get("mode") or source.get("defaultMode") or 0o644)

    def _write(self, pod: Object, file: Path, content: bytes, mode: int) -> None:
        """Aside, then renamed: whoever reads sees the old or the new."""
        security = pod["spec"].get("securityContext") or {}
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}.new")
        aside.write_bytes(content)
        if (group := security.get("fsGroup")) is not None:
            os.chown(aside, -1, group)
            mode |= 0o040
        elif security.get("runAsUser") is not None and not mode & 0o004:
            os.chown(aside, security["runAsUser"], -1)
        aside.chmod(mode)
        aside.replace(file)

    async def _token(self, pod: Object, wanted: Object) -> str:
        meta, account = pod["metadata"], pod["spec"].get("serviceAccountName") or "default"
        bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [wanted["audience"]] if wanted.get("audience") else [],
                "expirationSeconds": max(TOKEN_SECONDS, wanted.get("expirationSeconds") or 0),
                "boundObjectRef": bound,
            },
        }
        path = f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{account}/token"
        return str((await self._api.create(path, request))["status"]["token"])

    async def _claim(self, pod: Object, name: str) -> Path:
        """The folder of the volume that the claim is bound to."""
        claim = await self._api.find(
            f"/api/v1/namespaces/{pod['metadata']['namespace']}/persistentvolumeclaims/{name}"
        )
        if claim is None or (claim.get("status") or {}).get("phase") != "Bound":
            raise Missing(f"claim {name} is not bound")
        volume = await self._api.get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
        place = volume["spec"].get("hostPath") or volume["spec"].get("local")
        if place is None:
            raise Missing(f"volume {volume['metadata']['name']} is neither hostPath nor local")
        path = Path(place["path"])
        await asyncio.to_thread(path.mkdir, parents=True, exist_ok=True)
        return path

    def _host_path(self, source: Object) -> Path:
        path, kind = Path(source["path"]), source.get("type") or ""
        if kind == "DirectoryOrCreate":
            path.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            raise Missing(f"hostPath {path} does not exist")
        return path


def _give_to_group(path: Path, group: int | None, *, everything: bool) -> None:
    """fsGroup: the group owns the folder, may write, and new files are its own, too."""
    if group is None:
        return
    if everything and path.stat().st_gid != group:
        for folder, _, files in os.walk(path):
            for file in files:
                os.chown(Path(folder) / file, -1, group)
                (Path(folder) / file).chmod((Path(folder) / file).stat().st_mode | 0o060)
            os.chown(folder, -1, group)
            Path(folder).chmod(Path(folder).stat().st_mode | 0o2070)
    os.chown(path, -1, group)
    path.chmod(path.stat().st_mode | 0o2070)

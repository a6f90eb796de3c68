"""From a container's spec to the process that it is: variables, user, mounts, names. Starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.node.api import Api, ApiError
from tests.e2e.node.dns import resolv_conf
from tests.e2e.node.environment import Missing, command_of, variables_of
from tests.e2e.node.process import Launch, Mount
from tests.e2e.node.volumes import Volumes

Object = Mapping[str, Any]
_KEYS = (("configMapRef", "ConfigMap"), ("secretRef", "Secret"))
_KEY_REFERENCES = (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret"))


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


async def make_launch(host: Host, pod: Object, spec: Object, volumes: Volumes, folder: Path) -> Launch:
    """What one container of a pod is started with. Raises Missing while something is not there."""
    found = await _referred(host.api, pod, spec)
    server, port = host.api.place
    base = {
        **host.env,
        "HOSTNAME": hostname_of(pod),
        "KUBERNETES_SERVICE_HOST": server,
        "KUBERNETES_SERVICE_PORT": str(port),
        "KUBERNETES_SERVICE_PORT_HTTPS": str(port),
    }
    env = variables_of(pod, spec, base, lambda kind, name: found.get((kind, name)))
    security = {**(pod["spec"].get("securityContext") or {}), **(spec.get("securityContext") or {})}
    uid, group = security.get("runAsUser", 0), security.get("fsGroup")
    if security.get("runAsNonRoot") and not uid:
        raise Missing("runAsNonRoot needs runAsUser: there is no image to take it from")
    names = [
        Mount(source=folder / name, target=f"/etc/{name}", read_only=True)
        for name in ("resolv.conf", "hosts")
    ]
    return Launch(
        argv=command_of(spec, env),
        env=env,
        root=folder / "root" / spec["name"],
        mounts=[*names, *volumes.mounts(spec, env)],
        cwd=spec.get("workingDir") or "/",
        hostname=hostname_of(pod),
        uid=uid,
        gid=security.get("runAsGroup", 0),
        groups=[*security.get("supplementalGroups", ()), *([] if group is None else [group])],
        read_only_root=bool(security.get("readOnlyRootFilesystem")),
    )


def hostname_of(pod: Object) -> str:
    """Its own, or the pod's name."""
    return str(pod["spec"].get("hostname") or pod["metadata"]["name"])


def write_names(host: Host, pod: Object, folder: Path) -> None:
    """resolv.conf and hosts of a pod."""
    namespace, subdomain = pod["metadata"]["namespace"], pod["spec"].get("subdomain")
    name, address = hostname_of(pod), pod["status"]["podIP"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "resolv.conf").write_text(resolv_conf(host.address, namespace))
    names = f"{name}.{subdomain}.{namespace}.svc.cluster.local {name}" if subdomain else name
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {names}\n")


async def _referred(api: Api, pod: Object, spec: Object) -> dict[tuple[str, str], Object]:
    """The ConfigMaps and Secrets that a container's variables name, as far as they are there."""
    wanted = set()
    for source in spec.get("envFrom") or ():
        wanted |= {(kind, source[key]["name"]) for key, kind in _KEYS if key in source}
    for entry in spec.get("env") or ():
        source = entry.get("valueFrom") or {}
        wanted |= {(kind, source[key]["name"]) for key, kind in _KEY_REFERENCES if key in source}
    found: dict[tuple[str, str], Object] = {}
    for kind, name in wanted:
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/{kind.lower()}s/{name}"
        try:
            item = await api.find(path)
        except ApiError as error:
            raise Missing(str(error)) from None
        if item is not None:
            found[kind, name] = {**item, "kind": kind}
    return found

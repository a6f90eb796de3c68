"""The pod template of a role: one container, its probes, volumes and limits. Knows no Deployment and no Job."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.cluster.kinds import PodSettings
from orchestrator.cluster.kinds.pods import EnvVar
from orchestrator.cluster.names import CONFIG, DRAIN
from orchestrator.cluster.render.config import DRAIN_FILE
from orchestrator.cluster.render.options import Ports, RenderOptions
from orchestrator.cluster.render.overlay import overlay
from orchestrator.cluster.render.parts import Manifest, container_security, given, pod_security, port
from orchestrator.cluster.render.storage import CACHE, Mounts

PROBE_SECONDS = 10
EXIT_SECONDS = 5
"""Beyond the drain: for the process to end and its logs to be read."""
LIVE = "live"
"""Health service that is SERVING as long as the process answers at all: a draining or stale replica must not be
killed for not being ready. See services/common/server.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The program of a pod."""

    name: str
    image: str
    command: Sequence[str]
    arguments: Sequence[str] = ()
    ports: Sequence[Manifest] = ()
    env: Sequence[Manifest] = ()
    probes: Mapping[str, Manifest] = field(default_factory=dict)
    pre_stop_seconds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PodPlace:
    """Where pods run and under which name."""

    labels: Mapping[str, str]
    selector: Mapping[str, str]
    annotations: Mapping[str, str] = field(default_factory=dict)
    service_account: str
    node_labels: Mapping[str, str] = field(default_factory=dict)
    subdomain: str = ""
    restart: str = "Always"


def pod_template(
    settings: PodSettings, container: Container, mounts: Mounts, place: PodPlace, options: RenderOptions
) -> Manifest:
    """The template, the user's overlay on top; labels that selectors need survive it."""
    mounts.empty("tmp", "/tmp")  # noqa: S108 the pod's own
    if settings.shm_size is not None:
        memory = {"medium": "Memory", "sizeLimit": settings.shm_size}
        mounts.add({"name": "shm", "emptyDir": memory}, "/dev/shm")  # noqa: S108
    template = {
        "metadata": {
            "labels": dict(sorted({**settings.labels, **place.labels}.items())),
            **given(annotations=dict(sorted(place.annotations.items()))),
        },
        "spec": _pod(settings, container, mounts, place, options),
    }
    if settings.pod_template:
        template = overlay(template, settings.pod_template)
        template["metadata"]["labels"] = {**template["metadata"].get("labels", {}), **place.selector}
    return template


def grpc_probes(ports: Ports, startup_seconds: int) -> dict[str, Manifest]:
    """Native gRPC probes on the plaintext health port. Loading a large model is the startup probe's matter."""
    return {
        "startupProbe": {
            "grpc": {"port": ports.health},
            "periodSeconds": PROBE_SECONDS,
            "timeoutSeconds": 5,
            "failureThreshold": math.ceil(startup_seconds / PROBE_SECONDS),
        },
        "readinessProbe": {
            "grpc": {"port": ports.health},
            "periodSeconds": 5,
            "timeoutSeconds": 3,
            "failureThreshold": 2,
        },
        "livenessProbe": {
            "grpc": {"port": ports.health, "service": LIVE},
            "periodSeconds": PROBE_SECONDS,
            "timeoutSeconds": 10,
            "failureThreshold": 12,
        },
    }


def settings_arguments(
    config_file: str,
    settings: PodSettings,
    more: Mapping[str, str],
    secrets: Mapping[str, str] | None = None,
) -> list[str]:
    """--config, and each --set; $(VARIABLES) are filled in by the kubelet. `secrets`: field to variable.

    The program looks those up itself: what the kubelet fills in stands in `ps`.
    """
    arguments = ["--config", f"{CONFIG}/{config_file}"]
    for name, value in sorted({**more, **settings.settings}.items()):
        arguments += ["--set", f"{name}={value}"]
    for name, variable in sorted((secrets or {}).items()):
        if name not in settings.settings:
            arguments += ["--set-env", f"{name}={variable}"]
    return arguments


def listening(options: RenderOptions) -> dict[str, str]:
    """The --set of an installation that listens on the pod's address alone."""
    return {"server.host": "$(POD_IP)"} if options.listen_on_pod_ip else {}


def service_ports(ports: Ports, *, http: bool = False) -> list[Manifest]:
    """The container's ports of a service."""
    named = {"grpc": ports.grpc, "health": ports.health, "metrics": ports.metrics}
    if http and ports.http is not None:
        named["http"] = ports.http
    return [port(name, number) for name, number in named.items()]


def add_marks(mounts: Mounts) -> None:
    """The file by which the scaler tells a replica to drain. A folder: what is mounted by subPath never changes."""
    folder, _, file = DRAIN_FILE.rpartition("/")
    mark = {"path": file, "fieldRef": {"fieldPath": f"metadata.annotations['{DRAIN}']"}}
    mounts.add({"name": "marks", "downwardAPI": {"items": [mark]}}, folder, read_only=True)


def variable(name: str, value: str) -> Manifest:
    """An environment variable."""
    return {"name": name, "value": value}


def field_variable(name: str, path: str) -> Manifest:
    """A variable with a field of the pod."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def secret_variable(name: str, secret: str, key: str) -> Manifest:
    """A variable with a key of a Secret."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _pod(
    settings: PodSettings, container: Container, mounts: Mounts, place: PodPlace, options: RenderOptions
) -> Manifest:
    limits = settings.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    ends_within = container.pre_stop_seconds + settings.drain_seconds + EXIT_SECONDS
    return {
        "automountServiceAccountToken": False,
        "containers": [_container(settings, container, mounts)],
        "enableServiceLinks": False,
        **given(
            affinity=limits.get("affinity"),
            imagePullSecrets=[{"name": name} for name in settings.image_pull_secrets],
            initContainers=mounts.before,
            nodeSelector=dict(sorted({**settings.node_selector, **place.node_labels}.items())),
            priorityClassName=settings.priority_class_name,
            runtimeClassName=settings.runtime_class_name,
            subdomain=place.subdomain,
            tolerations=limits.get("tolerations"),
        ),
        "restartPolicy": place.restart,
        "securityContext": pod_security(options.user),
        "serviceAccountName": place.service_account,
        "terminationGracePeriodSeconds": ends_within + mounts.upload_seconds,
        "volumes": mounts.volumes,
    }


def _container(settings: PodSettings, container: Container, mounts: Mounts) -> Manifest:
    stop = (
        {"preStop": {"sleep": {"seconds": container.pre_stop_seconds}}} if container.pre_stop_seconds else {}
    )
    return {
        "name": container.name,
        "image": container.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": [*_bounded(settings, mounts), *container.command],
        **given(
            args=list(container.arguments),
            ports=list(container.ports),
            lifecycle=stop,
            resources=settings.resources.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        ),
        "env": _env(container.env, settings.env),
        **container.probes,
        "securityContext": container_security(),
        "volumeMounts": mounts.mounts,
    }


def _bounded(settings: PodSettings, mounts: Mounts) -> list[str]:
    """What kills the program so long after SIGTERM, where the pod's grace period is for its sidecar's upload too."""
    if not mounts.upload_seconds:
        return []
    # 0: it may run for as long as it likes.
    return ["timeout", "--foreground", f"--kill-after={settings.drain_seconds + EXIT_SECONDS}", "0"]


def _env(ours: Sequence[Manifest], theirs: Sequence[EnvVar]) -> list[Manifest]:
    """Ours, then the user's, who may replace ours by name. Caches and home lie where the pod may write."""
    base = [
        variable("HOME", "/tmp"),  # noqa: S108
        variable("HF_HOME", f"{CACHE}/huggingface"),
        variable("XDG_CACHE_HOME", CACHE),
        field_variable("POD_IP", "status.podIP"),
        *ours,
    ]
    given_by_user = [item.model_dump(mode="json", by_alias=True, exclude_none=True) for item in theirs]
    merged = {item["name"]: item for item in (*base, *given_by_user)}
    return list(merged.values())

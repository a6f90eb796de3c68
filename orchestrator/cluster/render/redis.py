"""The run's own Valkey: StatefulSet with an append-only file, its settings, its users. Knows no stage.

It never evicts, and every write is in its file within a second. Each service is a user with its commands and keys
alone; `operator` reads backlogs.
The Secret is made once, from passwords that are handed in, and never rendered again.
"""

from __future__ import annotations

import base64
import hashlib

from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.kinds.storage import OwnRedisSpec
from orchestrator.cluster.names import CONFIG_HASH, RunNames, service_of
from orchestrator.cluster.render.options import REDIS_PORT, RenderOptions
from orchestrator.cluster.render.parts import (
    Manifest,
    Owner,
    config_map,
    hash_of,
    headless_service,
    manifest,
    port,
    service_port,
)
from orchestrator.cluster.render.pods import Container, PodPlace, pod_template
from orchestrator.cluster.render.services import account_of
from orchestrator.cluster.render.storage import Mounts
from orchestrator.cluster.render.tls import FILES, add_certificates, prefix_of
from orchestrator.mutual_tls import QUEUE
from orchestrator.queue_users import QueueUsers, url_of
from services.common.stages.base import LEARNER_STAGE

PLAINTEXT = "port 6379\n"
# Who may do what is the users' matter, who prove themselves by their passwords.
ENCRYPTED = f"""\
port 0
tls-port 6379
tls-cert-file {FILES.certificate}
tls-key-file {FILES.private_key}
tls-ca-cert-file {FILES.authority}
tls-auth-clients no
"""
SETTINGS = """\
bind * -::*
protected-mode no
dir /data
aclfile /etc/valkey/users/users.acl
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
databases 1
"""


def render_redis(run: TrainingRun, names: RunNames, options: RenderOptions) -> list[Manifest]:
    """The server's objects without its Secret; nothing where the run uses another server."""
    own = run.spec.redis.owned
    if own is None:
        return []
    owner, labels, selector = (
        Owner("TrainingRun", run.metadata),
        names.labels("redis"),
        names.selector("redis"),
    )
    return [
        config_map(names.redis, {"valkey.conf": settings_of(run, names)}, owner, labels),
        headless_service(
            names.redis, selector, [service_port("redis", REDIS_PORT)], owner=owner, labels=labels
        ),
        manifest(
            "apps/v1",
            "StatefulSet",
            names.redis,
            owner=owner,
            labels=labels,
            spec={
                "replicas": 1,
                "revisionHistoryLimit": 3,
                "selector": {"matchLabels": selector},
                "serviceName": names.redis,
                "template": _template(run, names, own, options),
                "volumeClaimTemplates": [_claim(own)],
                # The queue goes with the run; its rollouts are of no use to another.
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
            },
        ),
    ]


def redis_secret(run: TrainingRun, names: RunNames, users: QueueUsers) -> Manifest:
    """The Secret: a URL for each service under its name, and users.acl for the server, which holds hashes alone."""
    scheme = "rediss" if prefix_of(run, names) else "redis"
    server = f"{scheme}://{names.host(names.redis)}:{REDIS_PORT}/0"
    data = {service_of(who): users.url(who, server) for who in users.passwords}
    lines = ["user default off", *users.lines()]
    if not run.spec.redis.acl:
        password = users.passwords[LEARNER_STAGE]
        data = dict.fromkeys(data, url_of("default", password, server))
        lines = [f"user default on #{hashlib.sha256(password.encode()).hexdigest()} ~* &* +@all"]
    data["users.acl"] = "\n".join(lines) + "\n"
    return manifest(
        "v1",
        "Secret",
        names.redis,
        owner=Owner("TrainingRun", run.metadata),
        labels=names.labels("redis"),
        type="Opaque",
        data={key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    )


def settings_of(run: TrainingRun, names: RunNames) -> str:
    """valkey.conf."""
    return SETTINGS + (ENCRYPTED if prefix_of(run, names) else PLAINTEXT)


def _claim(own: OwnRedisSpec) -> Manifest:
    storage_class = {"storageClassName": own.storage_class_name} if own.storage_class_name else {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": own.storage}},
            **storage_class,
        },
    }


def _template(run: TrainingRun, names: RunNames, own: OwnRedisSpec, options: RenderOptions) -> Manifest:
    probe = {"tcpSocket": {"port": REDIS_PORT}, "periodSeconds": 5, "timeoutSeconds": 3}
    container = Container(
        name="redis",
        image=own.image or options.images["redis"],
        command=["valkey-server", "/etc/valkey/conf/valkey.conf"],
        arguments=["--bind", "$(POD_IP)"] if options.listen_on_pod_ip else [],
        ports=[port("redis", REDIS_PORT)],
        probes={
            "startupProbe": {**probe, "failureThreshold": 120},
            "readinessProbe": {**probe, "failureThreshold": 2},
            "livenessProbe": {**probe, "failureThreshold": 24},
        },
    )
    mounts = Mounts()
    mounts.add({"name": "config", "configMap": {"name": names.redis}}, "/etc/valkey/conf", read_only=True)
    users = {"secretName": names.redis, "items": [{"key": "users.acl", "path": "users.acl"}]}
    mounts.add({"name": "users", "secret": users}, "/etc/valkey/users", read_only=True)
    add_certificates(mounts, run, names, QUEUE)
    mounts.mounts.append({"name": "data", "mountPath": "/data"})
    place = PodPlace(
        labels=names.labels("redis"),
        selector=names.selector("redis"),
        annotations={CONFIG_HASH: hash_of(settings_of(run, names))},
        service_account=account_of(run, names),
    )
    return pod_template(own, container, mounts, place, options)

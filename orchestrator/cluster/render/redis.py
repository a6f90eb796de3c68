"""The run's own Valkey: StatefulSet with an append-only file, its settings, its users. Knows no stage.

Settings as DETAILS fixes them. The user `run` reaches the run's keys and no others; `operator` reads backlogs and
removes what is left. The Secret is made once, from passwords that are handed in, and never rendered again.
"""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import quote

from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.kinds.storage import OwnRedisSpec
from orchestrator.cluster.names import CONFIG_HASH, RunNames
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

SETTINGS = """\
bind * -::*
protected-mode no
port 6379
dir /data
aclfile /etc/valkey/users/users.acl
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
databases 1
"""
ACL_USER, OPERATOR_USER = "run", "operator"


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
        config_map(names.redis, {"valkey.conf": SETTINGS}, owner, labels),
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


def redis_secret(run: TrainingRun, names: RunNames, *, password: str, operator_password: str) -> Manifest:
    """The Secret: whole URL for the services, users for the server (hashes alone), the operator's password."""
    user = ACL_USER if run.spec.redis.acl else "default"
    host = names.host(names.redis)
    data = {
        "url": f"redis://{user}:{quote(password, safe='')}@{host}:{REDIS_PORT}/0",
        "operator-url": f"redis://{OPERATOR_USER}:{quote(operator_password, safe='')}@{host}:{REDIS_PORT}/0",
        "users.acl": acl_file(names.run_uid, password, operator_password, own_user=run.spec.redis.acl),
    }
    return manifest(
        "v1",
        "Secret",
        names.redis,
        owner=Owner("TrainingRun", run.metadata),
        labels=names.labels("redis"),
        type="Opaque",
        data={key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    )


def acl_file(run_uid: str, password: str, operator_password: str, *, own_user: bool) -> str:
    """users.acl of a server of the run's own. Passwords stand in it as SHA-256."""
    operator = f"user {OPERATOR_USER} on {_hashed(operator_password)} ~* &* +@all"
    if own_user:
        return f"user default off\n{operator}\nuser {' '.join(acl_rules(run_uid, password))}\n"
    return f"user default on {_hashed(password)} ~* &* +@all\n{operator}\n"


def acl_rules(run_uid: str, password: str, user: str = ACL_USER) -> list[str]:
    """Words of `ACL SETUSER` for a run, on its own server or on a shared one: its keys, nothing that harms others."""
    return [
        user,
        "on",
        "resetkeys",
        "resetchannels",
        _hashed(password),
        f"~trimtab:{{{run_uid}}}:*",
        "+@all",
        "-@admin",
        "-@dangerous",
        "+info",
    ]


def _hashed(password: str) -> str:
    return "#" + hashlib.sha256(password.encode()).hexdigest()


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
    mounts.mounts.append({"name": "data", "mountPath": "/data"})
    place = PodPlace(
        labels=names.labels("redis"),
        selector=names.selector("redis"),
        annotations={CONFIG_HASH: hash_of(SETTINGS)},
        service_account=account_of(run, names),
    )
    return pod_template(own, container, mounts, place, options)

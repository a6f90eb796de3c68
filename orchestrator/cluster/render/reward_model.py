"""RewardModel: Deployment, headless Service, budget, configuration, policy. Knows no run.

A model in an object store or a hub is fetched by an init container to /models; a rule needs none.
"""

from __future__ import annotations

from typing import Any

from orchestrator.cluster.kinds import RewardModel
from orchestrator.cluster.kinds.base import GROUP
from orchestrator.cluster.kinds.reward_model import RewardSource
from orchestrator.cluster.kinds.storage import ObjectStoreSpec
from orchestrator.cluster.names import CONFIG, CONFIG_HASH, DIGEST, RewardModelNames
from orchestrator.cluster.render.config import server_table
from orchestrator.cluster.render.network import (
    NAMESPACE,
    dns,
    internet,
    open_ports,
    operator_peer,
    policy,
    scraped,
    to_cidrs,
    to_store,
)
from orchestrator.cluster.render.options import PORTS, RenderOptions
from orchestrator.cluster.render.parts import (
    Manifest,
    Owner,
    config_map,
    container_security,
    disruption_budget,
    given,
    hash_of,
    headless_service,
    manifest,
    service_account,
    service_port,
)
from orchestrator.cluster.render.pods import (
    Container,
    PodPlace,
    add_marks,
    grpc_probes,
    listening,
    pod_template,
    service_ports,
    settings_arguments,
)
from orchestrator.cluster.render.services import wanted_replicas
from orchestrator.cluster.render.storage import Mounts, add_cache, add_claim, remote_of
from orchestrator.local.toml import to_toml

MODELS = "/models"
KEYS, TLS = "/run/trimtab/keys", "/run/trimtab/tls"
PRE_STOP_SECONDS = 5
"""Callers find a replica by DNS and keep asking it until its record is gone; it goes on answering meanwhile."""
SHADOW = "shadow"


def render_reward_model(
    model: RewardModel, options: RenderOptions | None = None, *, creating: bool = True
) -> list[Manifest]:
    """All objects of a reward model. `creating`: its Deployment is not there yet, so its `replicas` are named."""
    options = options or RenderOptions()
    names, owner = RewardModelNames.of(model), Owner("RewardModel", model.metadata)
    ports = PORTS["reward"]
    toml = reward_model_toml(model)
    served = [service_port("grpc", ports.grpc), service_port("metrics", ports.metrics)]
    if model.spec.http and ports.http is not None:
        served.append(service_port("http", ports.http))
    account = [] if model.spec.service_account_name else [service_account(names.name, owner, names.labels)]
    return [
        *account,
        config_map(names.name, {"reward.toml": toml}, owner, names.labels),
        *_policies(model, names, options, owner),
        headless_service(names.name, names.selector, served, owner=owner, labels=names.labels),
        _deployment(model, names, toml, options, creating=creating),
        disruption_budget(names.name, names.selector, owner, names.labels),
    ]


def reward_model_toml(model: RewardModel) -> str:
    """The service's configuration. The model is served under the object's own name."""
    spec = model.spec
    server = server_table("reward", spec.drain_seconds, http=spec.http)
    guarded = spec.access_keys is not None or (spec.tls is not None and spec.tls.client_ca)
    tables: dict[str, Any] = {
        "server": server | ({} if guarded else {"allow_unauthenticated": True}),
        "log": {"level": "info", "json_lines": True},
        "dtype": spec.dtype,
        "token_budget": spec.token_budget,
        "models": [{"name": model.metadata.name, **_source(spec.source, "model")}],
    }
    if spec.shadow is not None:
        tables["models"].append({"name": SHADOW, **_source(spec.shadow.source, SHADOW)})
    if spec.access_keys is not None:
        tables["access"] = {
            "keys_file": f"{KEYS}/keys.toml",
            "allow_plaintext": spec.access_keys.allow_plaintext,
        }
    if spec.tls is not None:
        authority = {"client_ca": f"{TLS}/ca.crt"} if spec.tls.client_ca else {}
        tables["tls"] = {"certificate": f"{TLS}/tls.crt", "private_key": f"{TLS}/tls.key", **authority}
    return to_toml(tables)


def _source(source: RewardSource, folder: str) -> dict[str, Any]:
    if source.rule is not None:
        return {"rule": source.rule}
    return {"path": source.path or f"{MODELS}/{folder}"}


def _deployment(
    model: RewardModel, names: RewardModelNames, toml: str, options: RenderOptions, *, creating: bool
) -> Manifest:
    spec = model.spec
    number = {"replicas": wanted_replicas(spec)} if creating else {}
    return manifest(
        "apps/v1",
        "Deployment",
        names.name,
        owner=Owner("RewardModel", model.metadata),
        labels=names.labels,
        spec={
            **number,
            "progressDeadlineSeconds": spec.startup_timeout_seconds + 600,
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": names.selector},
            # Callers wait for answers: a new replica serves before an old one goes.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": _template(model, names, toml, options),
        },
    )


def _template(model: RewardModel, names: RewardModelNames, toml: str, options: RenderOptions) -> Manifest:
    spec = model.spec
    container = Container(
        name="reward",
        image=spec.image or options.images["reward"],
        command=["trimtab-reward"],
        arguments=settings_arguments("reward.toml", spec, listening(options)),
        ports=service_ports(PORTS["reward"], http=spec.http),
        probes=grpc_probes(PORTS["reward"], spec.startup_timeout_seconds),
        pre_stop_seconds=PRE_STOP_SECONDS,
    )
    digests = {DIGEST: spec.digest, f"{GROUP}/shadow-digest": spec.shadow.digest if spec.shadow else None}
    place = PodPlace(
        labels=names.labels,
        selector=names.selector,
        annotations={CONFIG_HASH: hash_of(toml), **given(**digests)},
        service_account=spec.service_account_name or names.name,
    )
    return pod_template(spec, container, _mounts(model, names, options), place, options)


def _mounts(model: RewardModel, names: RewardModelNames, options: RenderOptions) -> Mounts:
    spec, mounts = model.spec, Mounts()
    mounts.add({"name": "config", "configMap": {"name": names.name}}, CONFIG, read_only=True)
    add_marks(mounts)
    add_cache(mounts, spec.model_cache)
    if spec.volume is not None:
        add_claim(mounts, spec.volume, read_only=True)
    if spec.access_keys is not None:
        key = spec.access_keys.secret
        # The keys file must be unreadable to others: the service refuses it otherwise.
        items = [{"key": key.key, "path": "keys.toml"}]
        mounts.add(_secret("keys", key.name, items=items, defaultMode=0o440), KEYS, read_only=True)
    if spec.tls is not None:
        mounts.add(_secret("tls", spec.tls.secret_name, defaultMode=0o440), TLS, read_only=True)
    sources = {"model": spec.source} | ({SHADOW: spec.shadow.source} if spec.shadow else {})
    fetched = {folder: source for folder, source in sources.items() if source.url or source.registry}
    if fetched:
        mounts.empty("models", MODELS)
        mounts.before += [_fetch(model, source, folder, options) for folder, source in fetched.items()]
    return mounts


def _secret(volume: str, secret: str, **more: Any) -> Manifest:
    return {"name": volume, "secret": {"secretName": secret, **more}}


def _fetch(model: RewardModel, source: RewardSource, folder: str, options: RenderOptions) -> Manifest:
    """The init container that brings one model."""
    spec, target = model.spec, f"{MODELS}/{folder}"
    mounts = [
        {"name": "models", "mountPath": MODELS},
        {"name": "model-cache", "mountPath": "/cache"},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 the pod's own
    ]
    env = [{"name": "HOME", "value": "/tmp"}]  # noqa: S108
    if source.url is not None:
        store = ObjectStoreSpec(
            url=source.url, endpoint=spec.endpoint, credentials_secret=spec.credentials_secret
        )
        image = options.images["transfer"]
        command = ["rclone", "copy", remote_of(store), target]
    else:
        repository, _, revision = (source.registry or "").partition("@")
        image = spec.image or options.images["reward"]
        command = ["hf", "download", repository, "--local-dir", target]
        command += ["--revision", revision] if revision else []
        env.append({"name": "HF_HOME", "value": "/cache/huggingface"})
    credentials = [{"secretRef": {"name": spec.credentials_secret}}] if spec.credentials_secret else []
    return {
        "name": f"fetch-{folder}",
        "image": image,
        "imagePullPolicy": spec.image_pull_policy,
        "command": command,
        "env": env,
        **given(envFrom=credentials),
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
        "securityContext": container_security(),
        "volumeMounts": mounts,
    }


def _policies(
    model: RewardModel, names: RewardModelNames, options: RenderOptions, owner: Owner
) -> list[Manifest]:
    spec, ports = model.spec, PORTS["reward"]
    namespaces: list[Manifest] = [{"podSelector": {}}]
    if spec.allowed_namespaces:
        listed = {"key": NAMESPACE, "operator": "In", "values": list(spec.allowed_namespaces)}
        namespaces.append({"namespaceSelector": {"matchExpressions": [listed]}})
    answered = open_ports(ports.grpc, *([ports.http] if spec.http and ports.http else []))
    sources = [spec.source] + ([spec.shadow.source] if spec.shadow else [])
    outside = [internet()] if any(source.url or source.registry for source in sources) else []
    if any(source.url for source in sources):
        outside += to_store(spec.endpoint, spec.credentials_secret)
    return [
        policy(
            names.name,
            names.selector,
            owner=owner,
            labels=names.labels,
            ingress=[
                {"from": namespaces, "ports": answered},
                {"from": [operator_peer(options)]},
                *scraped(options, ports.metrics),
            ],
            egress=[dns(), *outside, *to_cidrs(spec.egress_cidrs)],
        )
    ]

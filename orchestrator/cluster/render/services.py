"""policy, reference and the reward stages: Deployment, headless Service, PodDisruptionBudget, ConfigMap."""

from __future__ import annotations

from orchestrator.cluster.kinds import ServiceRole, TrainingRun
from orchestrator.cluster.kinds.rewards import RefTlsSpec, RewardModelRef
from orchestrator.cluster.names import CONFIG, CONFIG_HASH, DIGEST, RunNames, service_of
from orchestrator.cluster.render.config import (
    CA_FILE,
    CLIENT_TLS,
    ENGINE_KEY_FILE,
    KEY_FILE,
    paths_read,
    service_toml,
)
from orchestrator.cluster.render.options import PORTS, RenderOptions, RunState
from orchestrator.cluster.render.parts import (
    Manifest,
    Owner,
    config_map,
    disruption_budget,
    hash_of,
    headless_service,
    manifest,
    service_port,
)
from orchestrator.cluster.render.pods import (
    Container,
    PodPlace,
    add_marks,
    grpc_probes,
    listening,
    pod_template,
    secret_variable,
    service_ports,
    settings_arguments,
)
from orchestrator.cluster.render.storage import Mounts, add_cache, add_claim, add_fetched
from orchestrator.cluster.render.tls import add_certificates, add_key, caller_files

QUEUE_URL = "TRIMTAB_QUEUE_URL"


def stage_role(run: TrainingRun, stage: str) -> ServiceRole:
    """The pods' settings of a stage: a reward stage may have its own."""
    if stage.partition("/")[0] == "reward":
        return run.spec.reward_of(stage).role or run.spec.roles.reward
    role: ServiceRole = getattr(run.spec.roles, stage)
    return role


def stages_of(run: TrainingRun) -> tuple[str, ...]:
    """The stages that have pods, each once, in the order of the slip."""
    return tuple(dict.fromkeys(run.spec.rollout.slip))


def render_stage(
    run: TrainingRun, names: RunNames, stage: str, options: RenderOptions, state: RunState
) -> list[Manifest]:
    """All objects of one stage's service."""
    owner, service, role = Owner("TrainingRun", run.metadata), service_of(stage), stage.partition("/")[0]
    name, labels, selector = names.service(service), names.labels(service, role), names.selector(service)
    toml = service_toml(run, names, stage)
    return [
        config_map(name, {f"{role}.toml": toml, **caller_files(run, names, role)}, owner, labels),
        headless_service(
            name,
            selector,
            [service_port("grpc", PORTS[role].grpc), service_port("metrics", PORTS[role].metrics)],
            owner=owner,
            labels=labels,
        ),
        deployment(run, names, stage, toml, options, state),
        disruption_budget(name, selector, owner, labels),
    ]


def deployment(
    run: TrainingRun, names: RunNames, stage: str, toml: str, options: RenderOptions, state: RunState
) -> Manifest:
    """The Deployment of a stage. `replicas` is named only where it is made: later the scaler owns the number."""
    service, settings = service_of(stage), stage_role(run, stage)
    name = names.service(service)
    number = {"replicas": first_replicas(run, settings, state)} if state.creates(name) else {}
    return manifest(
        "apps/v1",
        "Deployment",
        name,
        owner=Owner("TrainingRun", run.metadata),
        labels=names.labels(service, stage.partition("/")[0]),
        spec={
            **number,
            "progressDeadlineSeconds": settings.startup_timeout_seconds + 600,
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": names.selector(service)},
            # A pool of GPUs has rarely one to spare: a new pod before an old one has gone would wait for ever.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": stage_template(run, names, stage, toml, options, state),
        },
    )


def first_replicas(run: TrainingRun, settings: ServiceRole, state: RunState) -> int:
    """The number at creation. Nothing starts while suspended or waiting for admission."""
    if run.spec.suspend or not state.admitted:
        return 0
    return wanted_replicas(settings)


def wanted_replicas(settings: ServiceRole) -> int:
    """The number to begin with: given, or the least of Auto."""
    scaling = settings.scaling
    if scaling.mode != "Auto":
        return settings.replicas
    least = 1 if scaling.minimum is None else scaling.minimum
    return min(max(settings.replicas, least), scaling.maximum or least)


def stage_template(
    run: TrainingRun, names: RunNames, stage: str, toml: str, options: RenderOptions, state: RunState
) -> Manifest:
    """The pods of a stage."""
    role, service, settings = stage.partition("/")[0], service_of(stage), stage_role(run, stage)
    container = Container(
        name=role,
        image=settings.image or options.images[role],
        command=[f"trimtab-{role}"],
        arguments=settings_arguments(f"{role}.toml", settings, listening(options), {"queue.url": QUEUE_URL}),
        ports=service_ports(PORTS[role]),
        env=[queue_variable(run, names, service)],
        probes=grpc_probes(PORTS[role], settings.startup_timeout_seconds),
    )
    place = PodPlace(
        labels=names.labels(service, role),
        selector=names.selector(service),
        annotations={CONFIG_HASH: hash_of(toml), **_pinned(run, stage)},
        service_account=account_of(run, names),
        node_labels=state.node_labels.get(service, {}),
    )
    return pod_template(settings, container, _mounts(run, names, stage, options), place, options)


def account_of(run: TrainingRun, names: RunNames) -> str:
    """The service account of all pods of the run."""
    return run.spec.service_account_name or names.run


def queue_variable(run: TrainingRun, names: RunNames, service: str) -> Manifest:
    """Where the queue is, and as whom: with a password, so never in a ConfigMap or in an argument."""
    redis = run.spec.redis
    if redis.url is not None:
        return {"name": QUEUE_URL, "value": redis.url}
    return secret_variable(QUEUE_URL, *queue_secret(run, names, service))


def queue_secret(run: TrainingRun, names: RunNames, service: str) -> tuple[str, str]:
    """Secret and key of the URL by which a service, or `operator`, reaches the queue."""
    redis = run.spec.redis
    if redis.url_secret is not None:
        return redis.url_secret.name, redis.url_secret.key
    return redis.users_secret or names.redis, service


def _mounts(run: TrainingRun, names: RunNames, stage: str, options: RenderOptions) -> Mounts:
    mounts = Mounts()
    mounts.add(
        {"name": "config", "configMap": {"name": names.service(service_of(stage))}}, CONFIG, read_only=True
    )
    add_certificates(mounts, run, names, stage.partition("/")[0])
    add_marks(mounts)
    add_cache(mounts, run.spec.model_cache)
    paths, storage = paths_read(run, names, stage), run.spec.storage
    if paths and storage.pvc is not None:
        add_claim(mounts, storage.pvc, read_only=True)
    elif paths and storage.object_store is not None:
        add_fetched(mounts, storage.object_store, paths, options.images["transfer"])
    if stage.partition("/")[0] == "reward":
        ref = run.spec.reward_of(stage).reward_model_ref
        if ref is not None:
            _mount_secrets(mounts, ref)
    if stage == "policy" and run.spec.engine_key_secret is not None:
        add_key(mounts, "engine-key", run.spec.engine_key_secret, ENGINE_KEY_FILE)
    return mounts


def _mount_secrets(mounts: Mounts, ref: RewardModelRef) -> None:
    """What a bridge needs to reach its reward model: a key, whom to trust, a certificate of its own."""
    tls = ref.tls or RefTlsSpec()
    for name, secret, path in (("key", ref.key_secret, KEY_FILE), ("ca", tls.ca_secret, CA_FILE)):
        if secret is not None:
            add_key(mounts, name, secret, path)
    if tls.client_secret is not None:
        # The private key must be unreadable to others.
        pair: Manifest = {"secretName": tls.client_secret, "defaultMode": 0o440}
        mounts.add({"name": "client", "secret": pair}, CLIENT_TLS, read_only=True)


def _pinned(run: TrainingRun, stage: str) -> dict[str, str]:
    if stage.partition("/")[0] != "reward":
        return {}
    ref = run.spec.reward_of(stage).reward_model_ref
    return {DIGEST: ref.digest} if ref is not None and ref.digest else {}

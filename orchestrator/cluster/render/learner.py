"""The learner: an Indexed Job per attempt, its Services and its configuration. Knows no other role.

Its pods begin and end together. One that fails ends the attempt (backoffLimit 0); the next attempt is another Job,
which goes on from the last checkpoint under a new epoch. A StatefulSet would start them one after the other, and the
rendezvous of the first would wait for the last.
"""

from __future__ import annotations

from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.names import ATTEMPT, CONFIG, CONFIG_HASH, EPOCH, STEPS, RunNames
from orchestrator.cluster.render.config import learner_toml, starting_model
from orchestrator.cluster.render.options import PORTS, RENDEZVOUS_PORT, RenderOptions, RunState
from orchestrator.cluster.render.parts import (
    Manifest,
    Owner,
    config_map,
    hash_of,
    headless_service,
    manifest,
    service_port,
)
from orchestrator.cluster.render.pods import (
    Container,
    PodPlace,
    field_variable,
    grpc_probes,
    listening,
    pod_template,
    service_ports,
    settings_arguments,
    variable,
)
from orchestrator.cluster.render.services import QUEUE_URL, account_of, queue_variable
from orchestrator.cluster.render.storage import Mounts, add_cache, add_claim, add_run_folder, reads_storage
from orchestrator.cluster.render.tls import add_certificates, caller_files
from services.common.stages.base import LEARNER_STAGE

_TORCHRUN = ("python", "-m", "services.learner.distributed")
"""torchrun, ending with the status of the process that failed: a wrong configuration is not tried again."""
_TAKEN_AWAY = {"type": "DisruptionTarget", "status": "True"}
INDEX = "batch.kubernetes.io/job-completion-index"


def render_learner(
    run: TrainingRun, names: RunNames, options: RenderOptions, state: RunState
) -> list[Manifest]:
    """The learner's objects; the Job only where an attempt is going on."""
    owner, labels, ports = Owner("TrainingRun", run.metadata), names.labels("learner"), PORTS["learner"]
    selector = names.selector("learner")
    toml = learner_toml(run, names)
    objects = [
        config_map(
            names.learner, {"learner.toml": toml, **caller_files(run, names, "learner")}, owner, labels
        ),
        headless_service(
            names.learner,
            selector,
            [service_port("rendezvous", RENDEZVOUS_PORT), service_port("metrics", ports.metrics)],
            owner=owner,
            labels=labels,
            not_ready_too=True,
        ),
        headless_service(
            names.weights,
            selector | {INDEX: "0"},
            [service_port("grpc", ports.grpc)],
            owner=owner,
            labels=labels,
            not_ready_too=True,
        ),
    ]
    if state.attempt is None or run.spec.suspend or not state.admitted:
        return objects
    return [*objects, learner_job(run, names, toml, options, state)]


def learner_job(
    run: TrainingRun, names: RunNames, toml: str, options: RenderOptions, state: RunState
) -> Manifest:
    """One attempt. Nothing of it can change later: Kubernetes keeps a Job's template as it was made."""
    attempt = state.attempt or 1
    replicas = run.spec.roles.learner.replicas
    return manifest(
        "batch/v1",
        "Job",
        names.learner_job(attempt),
        owner=Owner("TrainingRun", run.metadata),
        labels=names.labels("learner") | {ATTEMPT: str(attempt)},
        annotations={EPOCH: str(state.epoch), STEPS: str(run.spec.steps)},
        spec={
            "backoffLimit": 0,
            "completionMode": "Indexed",
            "completions": replicas,
            "parallelism": replicas,
            "podReplacementPolicy": "Failed",
            # Ends the attempt as any failure does. The Job keeps what it was when the pod is gone, which is at once.
            "podFailurePolicy": {"rules": [{"action": "FailJob", "onPodConditions": [_TAKEN_AWAY]}]},
            "template": learner_template(run, names, toml, options, state),
        },
    )


def learner_template(
    run: TrainingRun, names: RunNames, toml: str, options: RenderOptions, state: RunState
) -> Manifest:
    """The pods of one attempt."""
    settings, attempt = run.spec.roles.learner, state.attempt or 1
    # Only rank 0 speaks gRPC and all pods share one template: with several nodes torchrun watches instead.
    probes = grpc_probes(PORTS["learner"], settings.startup_timeout_seconds) if settings.replicas == 1 else {}
    container = Container(
        name="learner",
        image=settings.image or options.images["learner"],
        command=list(_TORCHRUN) if settings.is_distributed else ["trimtab-learner"],
        arguments=settings_arguments("learner.toml", settings, listening(options), {"queue.url": QUEUE_URL}),
        ports=[*service_ports(PORTS["learner"]), _rendezvous_port()],
        env=[queue_variable(run, names, LEARNER_STAGE), *_torchrun(run, names, attempt)],
        probes=probes,
    )
    place = PodPlace(
        labels=names.labels("learner") | {ATTEMPT: str(attempt)},
        selector=names.selector("learner"),
        annotations={CONFIG_HASH: hash_of(toml)},
        service_account=account_of(run, names),
        node_labels=state.node_labels.get("learner", {}),
        subdomain=names.learner,
        restart="Never",
    )
    return pod_template(settings, container, _mounts(run, names, options), place, options)


def _torchrun(run: TrainingRun, names: RunNames, attempt: int) -> list[Manifest]:
    """torchrun reads its flags from PET_*. The first pod's host name is the meeting point."""
    learner, job = run.spec.roles.learner, names.learner_job(attempt)
    if not learner.is_distributed:
        return []
    return [
        variable("PET_NNODES", str(learner.replicas)),
        variable("PET_NPROC_PER_NODE", str(learner.nproc_per_node)),
        field_variable("PET_NODE_RANK", f"metadata.labels['{INDEX}']"),
        variable("PET_MASTER_ADDR", f"{job}-0.{names.host(names.learner)}"),
        variable("PET_MASTER_PORT", str(RENDEZVOUS_PORT)),
        variable("PET_RDZV_ID", job),
        variable("PET_MAX_RESTARTS", "0"),
    ]


def _rendezvous_port() -> Manifest:
    return {"name": "rendezvous", "containerPort": RENDEZVOUS_PORT, "protocol": "TCP"}


def _mounts(run: TrainingRun, names: RunNames, options: RenderOptions) -> Mounts:
    mounts, storage = Mounts(), run.spec.storage
    mounts.add({"name": "config", "configMap": {"name": names.learner}}, CONFIG, read_only=True)
    add_certificates(mounts, run, names, "learner")
    add_cache(mounts, run.spec.model_cache)
    if storage.pvc is not None:
        add_claim(mounts, storage.pvc, read_only=False)
    elif storage.object_store is not None:
        paths = reads_storage(starting_model(run, names), run.spec.data.prompts)
        image, keep = options.images["transfer"], run.spec.checkpoint.keep
        add_run_folder(mounts, storage.object_store, names.folder, paths, image, keep)
    return mounts

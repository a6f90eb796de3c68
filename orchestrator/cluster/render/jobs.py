"""Jobs before RL: supervised fine-tuning, the reward model. Each runs to its end once. Knows no service.

With an object store a sidecar uploads what the job wrote; it gets `uploadSeconds` after the job's end.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.kinds.stages import JobStage
from orchestrator.cluster.names import RunNames
from orchestrator.cluster.render.config import starting_model
from orchestrator.cluster.render.options import RenderOptions
from orchestrator.cluster.render.parts import Manifest, Owner, manifest
from orchestrator.cluster.render.pods import Container, PodPlace, pod_template
from orchestrator.cluster.render.services import account_of
from orchestrator.cluster.render.storage import Mounts, add_cache, add_claim, add_run_folder, reads_storage

SERVICES = {"sft": "sft", "rewardModel": "reward-model"}
"""Stage of spec.stages: the suffix of its Job's name, its command, and the folder that it writes."""


def render_job(run: TrainingRun, names: RunNames, stage: str, options: RenderOptions) -> list[Manifest]:
    """The Job of `sft` or `rewardModel`; nothing for other stages, or where the run has no such stage."""
    settings = {"sft": run.spec.stages.sft, "rewardModel": run.spec.stages.reward_model}.get(stage)
    if settings is None or run.spec.suspend:
        return []
    service = SERVICES[stage]
    template = _template(run, names, stage, settings, options)
    return [
        manifest(
            "batch/v1",
            "Job",
            names.job(service),
            owner=Owner("TrainingRun", run.metadata),
            labels=names.labels(service, "job"),
            spec={"backoffLimit": settings.retries, "completions": 1, "parallelism": 1, "template": template},
        )
    ]


def job_arguments(run: TrainingRun, names: RunNames, stage: str, settings: JobStage) -> list[str]:
    """Flags of `python -m services.learner.jobs`."""
    service, data_flag = SERVICES[stage], {"sft": "--data", "rewardModel": "--pairs"}[stage]
    before = starting_model(run, names) if stage == "rewardModel" else run.spec.model.path
    return [
        service,
        data_flag,
        settings.data,
        "--model",
        settings.model or before,
        "--out",
        f"{names.folder}/{service}",
        "--seed",
        str(run.spec.seed),
        *settings.arguments,
    ]


def _template(
    run: TrainingRun, names: RunNames, stage: str, settings: JobStage, options: RenderOptions
) -> Manifest:
    service = SERVICES[stage]
    arguments = job_arguments(run, names, stage, settings)
    container = Container(
        name=service,
        image=settings.image or options.images["learner"],
        command=["python", "-m", "services.learner.jobs"],
        arguments=arguments,
    )
    place = PodPlace(
        labels=names.labels(service, "job"),
        selector=names.selector(service),
        service_account=account_of(run, names),
        restart="Never",
    )
    return pod_template(settings, container, _mounts(run, names, arguments, options), place, options)


def _mounts(run: TrainingRun, names: RunNames, arguments: Sequence[str], options: RenderOptions) -> Mounts:
    mounts, storage = Mounts(), run.spec.storage
    add_cache(mounts, run.spec.model_cache)
    if storage.pvc is not None:
        add_claim(mounts, storage.pvc, read_only=False)
    elif storage.object_store is not None:
        out = arguments[arguments.index("--out") + 1]
        paths = [path for path in reads_storage(*arguments) if path != out]
        keep = run.spec.checkpoint.keep
        add_run_folder(mounts, storage.object_store, names.folder, paths, options.images["transfer"], keep)
    return mounts

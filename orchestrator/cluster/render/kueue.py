"""The one Workload that Kueue admits for a whole run: all roles together or none. Knows no queue's inside."""

from __future__ import annotations

from typing import Any

from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.names import RunNames, service_of
from orchestrator.cluster.render.config import learner_toml, service_toml
from orchestrator.cluster.render.learner import learner_template
from orchestrator.cluster.render.options import RenderOptions, RunState
from orchestrator.cluster.render.parts import Manifest, Owner, manifest
from orchestrator.cluster.render.services import stage_role, stage_template, stages_of, wanted_replicas


def render_workload(run: TrainingRun, names: RunNames, options: RenderOptions) -> list[Manifest]:
    """The Workload, with one set of pods per role at the numbers that the run begins with.

    Of a priority class it has the name alone: its number, which Kueue asks for beside it, is the cluster's to say.
    """
    queueing = run.spec.queueing
    if queueing is None:
        return []
    state = RunState()
    sets = [
        _pod_set(
            service_of(stage),
            wanted_replicas(stage_role(run, stage)),
            stage_template(run, names, stage, service_toml(run, names, stage), options, state),
        )
        for stage in stages_of(run)
    ]
    learner = learner_template(run, names, learner_toml(run, names), options, RunState(attempt=1))
    sets.append(_pod_set("learner", run.spec.roles.learner.replicas, learner))
    return [
        manifest(
            f"kueue.x-k8s.io/{options.kueue_version}",
            "Workload",
            names.run,
            owner=Owner("TrainingRun", run.metadata),
            labels=names.labels(),
            spec={
                "active": not run.spec.suspend,
                "podSets": sets,
                "queueName": queueing.queue_name,
                **_priority_class(queueing.priority_class, options.kueue_version),
            },
        )
    ]


def _priority_class(name: str | None, version: str) -> dict[str, Any]:
    if name is None:
        return {}
    if version == "v1beta1":
        return {"priorityClassName": name, "priorityClassSource": "kueue.x-k8s.io/workloadpriorityclass"}
    return {"priorityClassRef": {"group": "kueue.x-k8s.io", "kind": "WorkloadPriorityClass", "name": name}}


def _pod_set(name: str, count: int, template: Manifest) -> Manifest:
    """What Kueue needs to know of pods: how many, what they ask for, where they may run. Not what they do."""
    spec: dict[str, Any] = template["spec"]
    containers = [
        {key: container[key] for key in ("name", "image", "resources") if key in container}
        for container in spec["containers"]
    ]
    placed = {
        key: spec[key]
        for key in ("affinity", "nodeSelector", "tolerations", "priorityClassName")
        if key in spec
    }
    return {
        "name": name,
        "count": count,
        "template": {
            "metadata": {"labels": dict(template["metadata"]["labels"])},
            "spec": {"containers": containers, "restartPolicy": spec["restartPolicy"], **placed},
        },
    }

"""From a kind's object to the manifests that it stands for. Pure: what is there already is told, never asked.

The same input gives the same bytes, so applying them a second time changes nothing; only fields that the operator
means to own are in them.
"""

from __future__ import annotations

from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.names import RunNames
from orchestrator.cluster.render.jobs import render_job
from orchestrator.cluster.render.kueue import render_workload
from orchestrator.cluster.render.learner import render_learner
from orchestrator.cluster.render.network import render_network
from orchestrator.cluster.render.options import RenderOptions, RunState
from orchestrator.cluster.render.parts import Manifest, Owner, service_account
from orchestrator.cluster.render.redis import redis_secret, render_redis
from orchestrator.cluster.render.reward_model import render_reward_model
from orchestrator.cluster.render.services import render_stage, stages_of

__all__ = ["Manifest", "RenderOptions", "RunState", "redis_secret", "render_reward_model", "render_run"]


def render_run(
    run: TrainingRun, options: RenderOptions | None = None, state: RunState | None = None
) -> list[Manifest]:
    """All objects of a run in the order in which to apply them, without the queue's Secret (`redis_secret`).

    Raises InvalidInput where the run's sections do not fit together.
    """
    options, state, names = options or RenderOptions(), state or RunState(), RunNames.of(run)
    owner = Owner("TrainingRun", run.metadata)
    account = [] if run.spec.service_account_name else [service_account(names.run, owner, names.labels())]
    objects = [
        *account,
        *(render_workload(run, names, options) if state.queued else []),
        *render_network(run, names, options),
        *render_redis(run, names, options),
    ]
    if state.stage != "rl" or not run.spec.stages.rl.enabled:
        return [*objects, *(render_job(run, names, state.stage, options) if state.admitted else [])]
    for stage in stages_of(run):
        objects += render_stage(run, names, stage, options, state)
    return [*objects, *render_learner(run, names, options, state)]

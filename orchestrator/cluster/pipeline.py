"""From a TrainingRun to the pipeline, from a RewardModel to the service that the planner scales.

Knows what is wanted, not what is seen.
"""

from __future__ import annotations

from orchestrator.cluster.kinds import RewardModel, ScalingSpec, ServiceRole, TrainingRun
from orchestrator.cluster.names import service_of
from orchestrator.cluster.render.services import stage_role, stages_of
from orchestrator.planning.serving import ServiceSpec
from orchestrator.planning.spec import Auto, External, PipelineSpec, RoleSpec, Scaling, Static


def pipeline_spec(run: TrainingRun) -> PipelineSpec:
    """The run as the scaler sees it. Roles that name one pool share the least of its limits."""
    spec, roles, pools = run.spec, [], dict[str, int]()
    for stage in stages_of(run):
        name, role = service_of(stage), stage_role(run, stage)
        pool, limit = role.pool or name, role.scaling.pool_limit
        if limit is not None:
            pools[pool] = min(limit, pools.get(pool, limit))
        roles.append(
            RoleSpec(name=name, scaling=scaling_of(role), price=role.price, slots=role.slots, pool=pool)
        )
    return PipelineSpec(
        roles=tuple(roles),
        batch_groups=spec.rollout.batch_groups,
        max_staleness=spec.rollout.max_staleness,
        learner_price=spec.roles.learner.price,
        pools=pools,
        suspended=spec.suspend,
        stale_seconds=float(spec.max_staleness_seconds),
    )


def service_spec(model: RewardModel) -> ServiceSpec:
    """A reward model as the scaler sees it."""
    return ServiceSpec(
        name=model.metadata.name,
        scaling=scaling_of(model.spec),
        pool_limit=model.spec.scaling.pool_limit,
    )


def scaling_of(role: ServiceRole) -> Scaling:
    """Who decides, as the planner has it."""
    scaling: ScalingSpec = role.scaling
    if scaling.mode == "External":
        return External()
    if scaling.mode == "Static":
        return Static(role.replicas)
    least = 1 if scaling.minimum is None else scaling.minimum
    return Auto(least, scaling.maximum or least)

"""From a TrainingRun to the planner's pipeline."""

from __future__ import annotations

from orchestrator.cluster.pipeline import pipeline_spec
from orchestrator.planning.spec import Auto, External, Static
from tests.unit.orchestrator.cluster.objects import run


def test_roles_bounds_and_pools() -> None:
    """Each stage is a role with its mode; roles of one pool share the least limit that they name."""
    spec = run(
        suspend=True,
        rollout={
            "batchGroups": 64,
            "maxStaleness": 2,
            "slip": ["policy", "reference", "reward/hh", "reward/rules"],
        },
        roles={
            "policy": {
                "scaling": {"mode": "Auto", "max": 8, "poolLimit": 12},
                "pool": "gpu",
                "slots": 4,
                "price": 2.5,
            },
            "reference": {"scaling": {"mode": "Auto", "min": 0, "max": 4, "poolLimit": 9}, "pool": "gpu"},
            "reward": {"replicas": 3},
        },
        rewards=[{"stage": "reward/rules", "rule": "length", "role": {"scaling": {"mode": "External"}}}],
        rewardModel="/storage/hh",
    )
    pipeline = pipeline_spec(spec)
    roles = {role.name: role for role in pipeline.roles}
    assert list(roles) == ["policy", "reference", "reward-hh", "reward-rules"]
    assert roles["policy"].scaling == Auto(1, 8)
    assert (roles["policy"].slots, roles["policy"].price) == (4, 2.5)
    assert roles["reference"].scaling == Auto(0, 4)
    assert roles["reward-hh"].scaling == Static(3)
    assert roles["reward-rules"].scaling == External()
    assert pipeline.pools == {"gpu": 9}
    assert (pipeline.batch_groups, pipeline.max_staleness, pipeline.suspended) == (64, 2, True)

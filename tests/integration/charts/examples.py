"""The files of deploy/examples and what their objects stand for. For tests."""

from __future__ import annotations

from pathlib import Path

import yaml

from orchestrator.cluster.documents import Object, read_objects
from orchestrator.cluster.kinds import RewardModel
from orchestrator.cluster.names import RunNames
from orchestrator.cluster.render import RunState, redis_secret, render_reward_model, render_run
from orchestrator.queue_users import QueueUsers
from tests.integration.charts.rendering import ROOT, Manifest, Values

EXAMPLES = ROOT / "deploy" / "examples"
FOLDERS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
OURS, OTHERS = [], []
"""Files of TrainingRuns and RewardModels; files of everything else that is applied."""
for _path in sorted(EXAMPLES.glob("*/*.yaml")):
    if _path.name != "values.yaml":
        _ours = "apiVersion: trimtab.dev" in _path.read_text(encoding="utf-8").replace(
            "{apiVersion: trimtab.dev", ""
        )
        (OURS if _ours else OTHERS).append(_path)
OBJECTS: list[Object] = [item for path in OURS for item in read_objects(path)]


def values_of(folder: str) -> Values:
    """The example's values for the chart."""
    return dict(yaml.safe_load((EXAMPLES / folder / "values.yaml").read_text(encoding="utf-8")))


def documents(path: Path) -> list[Manifest]:
    """The objects of a file, as they stand."""
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def manifests_of(item: Object) -> list[Manifest]:
    """All that the operator makes of an object, at every stage of its life."""
    if isinstance(item, RewardModel):
        return render_reward_model(item)
    made = [
        manifest
        for stage in ("sft", "rewardModel", "rl")
        for manifest in render_run(item, state=RunState(attempt=1, stage=stage))
    ]
    if item.spec.redis.owned is not None:
        names = RunNames.of(item)
        made.append(redis_secret(item, names, QueueUsers.draw(names.run_uid, item.spec.rollout.slip)))
    return made


def resource_of(manifest: Manifest) -> tuple[str, str]:
    """API group and plural."""
    group = manifest["apiVersion"].rpartition("/")[0].partition("/")[0]
    kind = manifest["kind"].lower()
    return group, f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"

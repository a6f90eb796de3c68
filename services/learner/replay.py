"""A step once more, from its rollouts: python -m services.learner.replay runs/mine 123; `trimtab replay` calls it.

    newest checkpoint before the step ─▶ the kept rollouts of every step since ─▶ the step's metrics, then and now

Without a checkpoint before it, it begins with the run's starting model. Nothing in the run's folder is changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from services.common.errors import InvalidInput, NotFound, TrimtabError
from services.common.spec.load import load_toml
from services.common.spec.run import RunSpec
from services.learner.checkpoints import Checkpoints
from services.learner.kept_rollouts import read_rollouts, rollout_file
from services.learner.pretraining import load_texts
from services.learner.training import Trainer
from services.models.loading import load_language_model


def replay(folder: Path, step: int) -> dict[str, float]:
    """Metrics of the step, made anew from `folder`, a run's. Raises NotFound, InvalidInput, Corrupted."""
    spec = load_toml(folder / "run.toml", RunSpec)
    if spec.offline:
        raise InvalidInput(
            f"{folder}: algorithm.kind = {spec.algorithm.kind} has no rollouts: resume the run instead"
        )
    if not 1 <= step <= spec.steps:
        raise InvalidInput(f"step {step}: the run has steps 1 to {spec.steps}")
    loaded = load_language_model(spec.model)
    trainer = Trainer(loaded, spec, load_texts(spec.data, loaded.tokenizer))
    checkpoints = Checkpoints(folder / "checkpoints", keep=spec.checkpoint.keep)
    before = checkpoints.latest(before=step)
    if before is not None:
        trainer.load_state_dict(checkpoints.read(before)[0])
    metrics: dict[str, float] = {}
    while trainer.step_number < step:
        metrics = trainer.step(read_rollouts(rollout_file(folder / "rollouts", trainer.step_number + 1)))
    return metrics


def recorded(folder: Path, step: int) -> dict[str, float]:
    """What metrics.jsonl says of the step; empty where it says nothing."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise NotFound(f"{path}: no such file: {folder} is no run's folder")
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
    return next((row for row in rows if row.get("step") == step), {})


def main() -> int:
    """0 where every figure of the step that does not depend on a clock is the same again."""
    parser = argparse.ArgumentParser(prog="python -m services.learner.replay")
    parser.add_argument("folder", type=Path)
    parser.add_argument("step", type=int)
    arguments = parser.parse_args()
    try:
        then, now = recorded(arguments.folder, arguments.step), replay(arguments.folder, arguments.step)
    except TrimtabError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    names = [name for name in now if name in then and not name.startswith("time/")]
    differing = [name for name in names if then[name] != now[name]]
    for name in names:
        sys.stdout.write(
            f"{name:<40} {then[name]:>14.8g} {now[name]:>14.8g}{' *' if name in differing else ''}\n"
        )
    sys.stdout.write(
        f"step {arguments.step}: {len(names) - len(differing)} of {len(names)} figures are the same\n"
    )
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())

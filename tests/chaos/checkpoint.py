"""Whether a run's checkpoints are what they should be: loaded, compared with what was published, trained on from."""

from __future__ import annotations

import json
from pathlib import Path


def wrong_with_checkpoints(root: Path) -> list[str]:
    """Sentences. Loads the last one as a resume does, and does the last step again from the one before it."""
    from services.common.errors import TrimtabError

    try:
        return _last(root) + _again(root)
    except TrimtabError as error:
        return [f"the last checkpoint does not load: {error}"]


def _last(root: Path) -> list[str]:
    from services.common.spec.load import load_toml
    from services.common.spec.run import RunSpec
    from services.learner.checkpoints import Checkpoints
    from services.learner.pretraining import load_texts
    from services.learner.training import Trainer
    from services.models.loading import load_language_model
    from services.models.manifest import entries_of, policy_digest

    spec = load_toml(root / "run.toml", RunSpec)
    checkpoints = Checkpoints(root / "checkpoints", keep=spec.checkpoint.keep)
    latest = checkpoints.latest()
    if latest is None:
        return ["there is no checkpoint"]
    loaded = load_language_model(spec.model)
    trainer = Trainer(loaded, spec, load_texts(spec.data, loaded.tokenizer))
    weights, state = checkpoints.read(latest)
    trainer.load_state_dict(weights)
    digest = policy_digest(entries_of(dict(trainer.serving_weights())))
    published = json.loads((root / "published.json").read_text())["digest"]
    wrong = (
        [] if digest == published else [f"{latest.name} holds {digest[:12]}, published was {published[:12]}"]
    )
    if trainer.step_number != state["step"]:
        wrong.append(f"{latest.name} is of step {trainer.step_number}, its state of {state['step']}")
    return wrong


def _again(root: Path) -> list[str]:
    from services.learner.replay import recorded, replay

    last = len((root / "metrics.jsonl").read_text().splitlines())
    if last < 1:
        return []
    then, now = recorded(root, last), replay(root, last)
    differing = [
        name for name in now if name in then and not name.startswith("time/") and then[name] != now[name]
    ]
    return [f"step {last} done again differs in {name}: {now[name]} for {then[name]}" for name in differing]

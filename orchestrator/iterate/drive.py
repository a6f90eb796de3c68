"""`trimtab iterate`: reads the run file, prepares the folder, runs the rounds, says how they went."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from orchestrator.demo.collect import DemoPrompt, read_prompts
from orchestrator.demo.ready import is_halved
from orchestrator.iterate import state
from orchestrator.iterate.options import IterateRun
from orchestrator.local.foreground import run_until_signal
from orchestrator.local.layout import RunLayout
from orchestrator.local.options import RunOptions
from orchestrator.local.progress import LiveView
from services.common.errors import Mismatch, NotFound, UserError
from services.common.spec.load import load_toml

RUN_FILE = Path(__file__).with_name("recipes") / "rounds.toml"
TOLD_FILE = "iterate.json"


@dataclass(frozen=True, slots=True)
class Material:
    """What a run of rounds has from its files: prompts to train on, prompts held out; the SHA-256 of them all."""

    train: list[DemoPrompt]
    held_out: list[DemoPrompt]
    digest: str


def run_iterate(run_file: Path, options: RunOptions) -> int:
    """Carry out all rounds, or those that are missing; 0 when the last one is in the report. Raises the error tree."""
    from orchestrator.iterate.course import Course

    spec = load_toml(run_file, IterateRun, options.all_overrides())
    spec, material = resolved(run_file, spec, options)
    layout = RunLayout.prepare(options.folder(spec), resume=options.resume, overwrite=options.overwrite)
    with LiveView(Console(stderr=True)) as view:
        rounds = begun(layout, spec, material)
        course = Course(layout, spec, material, rounds, view, halved=is_halved(options))
        return run_until_signal(course.run())


def resolved(
    run_file: Path, spec: IterateRun, options: RunOptions | None = None
) -> tuple[IterateRun, Material]:
    """The spec with paths that hold from anywhere, and the prompts. Raises NotFound or UserError."""
    options = options or RunOptions()
    prompts_file = (options.beside(run_file, "data.prompts") / spec.data.prompts).resolve()
    if not prompts_file.is_file():
        raise NotFound(f"{prompts_file}: no such prompt file")
    prompts = read_prompts(prompts_file)
    train = [one for one in prompts if one.split == spec.data.split]
    held = [one for one in prompts if one.split != spec.data.split][: spec.iterate.held_out_prompts]
    if not train or not held:
        raise UserError(f"{prompts_file}: prompts of split {spec.data.split!r} and others are needed")
    told = spec.iterate
    if told.learn == "comparisons":
        _check_rewards(spec)
    if told.learn == "demonstrations":
        file = (options.beside(run_file, "iterate.demonstrations") / told.demonstrations).resolve()
        if not told.demonstrations or not file.is_file():
            raise NotFound(
                f"iterate.demonstrations: {told.demonstrations or 'a file is needed'}: no such file"
            )
        told = told.model_copy(update={"demonstrations": str(file)})
    if told.earlier_answers >= told.answers:
        raise UserError(
            f"iterate.earlier_answers = {told.earlier_answers} leaves none of {told.answers} to the current policy"
        )
    data = spec.data.model_copy(update={"prompts": str(prompts_file)})
    digest = hashlib.sha256(prompts_file.read_bytes()).hexdigest()
    return spec.model_copy(update={"data": data, "iterate": told}), Material(train, held, digest)


def _check_rewards(spec: IterateRun) -> None:
    """A round's reward is its own reward model's alone. Raises UserError: now, not when all labels are made."""
    if spec.offline:
        raise UserError(f"algorithm.kind = {spec.algorithm.kind} has no rollouts to give a reward to")
    if spec.reward_sources:
        raise UserError("reward_sources: each round fits a reward model of its own")
    stages = [stage for stage in spec.rollout.slip if stage.partition("/")[0] == "reward"]
    if stages != ["reward"]:
        found = ", ".join(stages) or "none"
        raise UserError(f"rollout.slip: expected one scoring stage, reward, for a round's model, not {found}")


def begun(layout: RunLayout, spec: IterateRun, material: Material) -> state.Rounds:
    """How far the run is.

    Raises Mismatch for a resume with other anchors, whose rounds would not be comparable, or with settings that what
    lies in the folder does not fit.
    """
    told, made_with = spec.iterate, _made_with(spec, material)
    found = state.rounds_of(layout.root)
    if found is None:
        found = state.Rounds(reference=told.reference, policy_init=told.policy_init)
    if (found.reference, found.policy_init) != (told.reference, told.policy_init):
        raise Mismatch(
            f"{layout.root} was begun with reference = {found.reference} and policy_init = {found.policy_init}, "
            f"not {told.reference} and {told.policy_init}"
        )
    for name, before in found.made_with.items():
        if (now := made_with.get(name)) != before:
            raise Mismatch(f"{layout.root} was begun with {name} = {before}, not {now}: its files do not fit")
    found.made_with = made_with
    state.write(layout.root / state.STATE_FILE, found)
    (layout.root / TOLD_FILE).write_text(json.dumps(told.model_dump(), indent=2) + "\n")
    return found


def _made_with(spec: IterateRun, material: Material) -> dict[str, int | float | str]:
    """What answers, labels and draws in the run's folder go by, by the names that a run file has for it."""
    told = spec.iterate
    return {
        "iterate.learn": told.learn,
        "iterate.answers": told.answers,
        "iterate.earlier_answers": told.earlier_answers,
        "iterate.completions": told.completions,
        "iterate.annotator_rule": told.annotator_rule,
        "model.path": spec.model.path,
        "sampling.temperature": spec.sampling.temperature,
        "sampling.max_new_tokens": spec.sampling.max_new_tokens,
        "seed": spec.seed,
        "data.split": spec.data.split,
        "data.prompts (SHA-256)": material.digest,
    }

"""`trimtab iterate`: reads the run file, prepares the folder, runs the rounds, says how they went."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from orchestrator.demo.collect import DemoPrompt, read_prompts
from orchestrator.iterate import state
from orchestrator.iterate.options import IterateRun
from orchestrator.local.foreground import run_until_signal
from orchestrator.local.layout import RunLayout
from orchestrator.local.options import RunOptions
from orchestrator.local.progress import LiveView
from services.common.errors import Mismatch, NotFound, UserError
from services.common.spec.load import load_toml

RUN_FILE = Path(__file__).with_name("recipes") / "rounds.toml"
STATE_FILE = "rounds.json"
TOLD_FILE = "iterate.json"


@dataclass(frozen=True, slots=True)
class Material:
    """What a run of rounds has from its files: prompts to train on, prompts held out."""

    train: list[DemoPrompt]
    held_out: list[DemoPrompt]


def run_iterate(run_file: Path, options: RunOptions) -> int:
    """Carry out all rounds, or those that are missing; 0 when the last one is in the report. Raises the error tree."""
    from orchestrator.iterate.course import Course

    spec = load_toml(run_file, IterateRun, options.all_overrides())
    spec, material = resolved(run_file, spec)
    layout = RunLayout.prepare(options.folder(spec), resume=options.resume, overwrite=options.overwrite)
    with LiveView(Console(stderr=True)) as view:
        rounds = begun(layout, spec)
        return run_until_signal(Course(layout, spec, material, rounds, view).run())


def resolved(run_file: Path, spec: IterateRun) -> tuple[IterateRun, Material]:
    """The spec with paths that hold from anywhere, and the prompts. Raises NotFound or UserError."""
    prompts_file = (run_file.parent / spec.data.prompts).resolve()
    if not prompts_file.is_file():
        raise NotFound(f"{prompts_file}: no such prompt file")
    prompts = read_prompts(prompts_file)
    train = [one for one in prompts if one.split == spec.data.split]
    held = [one for one in prompts if one.split != spec.data.split][: spec.iterate.held_out_prompts]
    if not train or not held:
        raise UserError(f"{prompts_file}: prompts of split {spec.data.split!r} and others are needed")
    told = spec.iterate
    if told.learn == "demonstrations":
        file = (run_file.parent / told.demonstrations).resolve()
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
    return spec.model_copy(update={"data": data, "iterate": told}), Material(train, held)


def begun(layout: RunLayout, spec: IterateRun) -> state.Rounds:
    """How far the run is. Raises Mismatch for a resume with other anchors: its rounds would not be comparable."""
    told = spec.iterate
    found = state.read(layout.root / STATE_FILE)
    if found is None:
        found = state.Rounds(reference=told.reference, policy_init=told.policy_init)
    if (found.reference, found.policy_init) != (told.reference, told.policy_init):
        raise Mismatch(
            f"{layout.root} was begun with reference = {found.reference} and policy_init = {found.policy_init}, "
            f"not {told.reference} and {told.policy_init}"
        )
    state.write(layout.root / STATE_FILE, found)
    (layout.root / TOLD_FILE).write_text(json.dumps(told.model_dump(), indent=2) + "\n")
    return found

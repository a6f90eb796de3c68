"""`trimtab from-trl` from YAML, data and reward functions to a trained model, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.local.in_process import run_in_process
from orchestrator.trl.command import Wanted, tell, write
from orchestrator.trl.rewards import reward_source
from services.common.errors import AlreadyExists, ConfigError, InvalidInput, NotFound
from services.common.spec.load import load_toml
from services.common.spec.run import RunSpec
from tests.fakes.tiny_models import make_tiny_causal

REWARDS = '''
def typed(prompts, completions, completion_ids, answer, **kwargs):
    """2.0 where every argument is as TRL gives it."""
    return [
        2.0 * (
            prompt[0]["content"].startswith("Count")
            and completion[0]["role"] == "assistant"
            and isinstance(number, int)
            and 1 <= len(ids) <= 4
            and kwargs["tags"][0] == ["a", 1]
            and "prompt" not in kwargs
        )
        for prompt, completion, ids, number in zip(prompts, completions, completion_ids, answer)
    ]

def sometimes(completions, answer, **kwargs):
    """Nothing to say of even numbers; else 1."""
    return [None if number % 2 == 0 else 1.0 for number in answer]

def needs_state(completions, trainer_state):
    return [0.0] * len(completions)

def needs_gold(completions, gold):
    return [0.0] * len(completions)
'''
CONFIG = """
model_name_or_path: {model}
learning_rate: 1e-3
per_device_train_batch_size: 4
num_generations: 2
max_completion_length: 4
max_steps: 2
reward_funcs: [trl_style_rewards.typed, "trl_style_rewards:sometimes"]
reward_weights: [1.0, 0.5]
scale_rewards: none
bf16: false
save_strategy: "no"
log_level: error
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "trl_style_rewards.py").write_text(REWARDS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Count to {n}"}],
            "answer": n,
            "tags": ["a", 1],
            "split": "x",
        }
        for n in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def config(folder: Path, **more: Any) -> Path:
    path = folder / "grpo.yaml"
    extra = "".join(f"{name}: {json.dumps(value)}\n" for name, value in more.items())
    path.write_text(CONFIG.format(model=folder / "model") + extra, encoding="utf-8")
    return path


def wanted(folder: Path, path: Path, **more: Any) -> Wanted:
    return Wanted(config=path, out=folder / "out", data=str(folder / "rows.jsonl"), **more)


def test_a_grpo_config_trains_with_its_functions(folder: Path) -> None:
    """Both functions get TRL's arguments unchanged; rows of even numbers score 2, the others 2 + 0.5."""
    make_tiny_causal(folder / "model")
    draft = write(wanted(folder, config(folder)))
    spec = load_toml(folder / "out" / "run.toml", RunSpec)
    assert (spec.steps, spec.rollout.batch_groups) == (2, 2)
    assert run_in_process(spec, folder / "run") == 0
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    # Each step has two of the four prompts, and both steps together have all of them.
    assert sum(step["objective/scores"] for step in metrics) / 2 == pytest.approx(2.25)
    console = Console(record=True, width=160)
    tell(draft, folder / "out", console)
    text = console.export_text()
    assert "log_level" in text
    assert "metrics.jsonl" in text
    report = json.loads((folder / "out" / "from-trl.json").read_text())
    assert {note["field"]: note["fate"] for note in report["fields"]}["reward_weights"] == "mapped"


def test_jobs_become_commands(folder: Path) -> None:
    """SFT on messages is one command line beside its rows, with the layers that peft takes of such a model; what TRL
    would learn otherwise is refused by its place."""
    path = folder / "sft.yaml"
    path.write_text("model_name_or_path: m\ncompletion_only_loss: true\noutput_dir: o\n", encoding="utf-8")
    rows = [
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
    ]
    (folder / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    write(wanted(folder, path))
    command = (folder / "out" / "command.txt").read_text()
    assert command.startswith(
        f"trimtab sft --data {folder}/out/data.jsonl --model m --out o --learning-rate 2e-05"
    )
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    path.write_text(
        f"model_name_or_path: {folder}\ncompletion_only_loss: true\nuse_peft: true\nlora_dropout: 0.0\n"
    )
    write(wanted(folder, path))
    assert (folder / "out" / "command.txt").read_text().endswith("--lora-target c_attn\n")
    (folder / "rows.jsonl").write_text(json.dumps({"text": "a"}) + "\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"rows\.jsonl:1: expected prompt and completion as messages"):
        write(wanted(folder, path))


def test_pairs_of_dpo(folder: Path) -> None:
    """Text stays text, conversations keep their prompt's messages; HH's dialogues are not what TRL would read."""
    path = folder / "dpo.yaml"
    path.write_text("model_name_or_path: m\nprecompute_ref_log_probs: false\n", encoding="utf-8")
    user, good, bad = (
        {"role": role, "content": text}
        for role, text in (("user", "q"), ("assistant", "g"), ("assistant", "b"))
    )
    rows = [
        {"prompt": "q", "chosen": "g", "rejected": "b"},
        {"chosen": [user, good], "rejected": [user, bad]},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write(wanted(folder, path))
    written = [json.loads(line) for line in (folder / "out" / "data.jsonl").read_text().splitlines()]
    assert written == [rows[0], {"prompt": [user], "chosen": "g", "rejected": "b"}]
    dialogue = {"chosen": "\n\nHuman: q\n\nAssistant: g", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    (folder / "rows.jsonl").write_text(json.dumps(dialogue) + "\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match="expected prompt, chosen and rejected as messages"):
        write(wanted(folder, path))


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        (
            "trl_style_rewards.needs_state",
            InvalidInput,
            "asks for trainer_state, which only TRL's own loop has",
        ),
        ("trl_style_rewards:needs_gold", InvalidInput, "asks for gold, which is no column"),
        ("trl_style_rewards.none", NotFound, "AttributeError"),
        ("no_such_module.f", NotFound, "ModuleNotFoundError"),
        ("some/reward-model", NotFound, "no such folder, and no module:function"),
        ("get_soft_overlong_punishment", InvalidInput, "it makes a function"),
    ],
)
def test_rewards_that_cannot_be_called(folder: Path, name: str, error: type[Exception], said: str) -> None:
    """Told when the config is read, not at the first score."""
    with pytest.raises(error, match=said):
        reward_source(name, ["answer"])


def test_mistakes_of_a_config(folder: Path) -> None:
    """Refused fields, an unknown trainer, no data: one line each."""
    with pytest.raises(ConfigError, match="sync_ref_model = True: the reference is frozen"):
        write(wanted(folder, config(folder, sync_ref_model=True)))
    with pytest.raises(InvalidInput, match="--trainer kto: expected one of grpo"):
        write(wanted(folder, config(folder), trainer="kto"))
    with pytest.raises(ConfigError, match="expected a data set"):
        write(Wanted(config=config(folder), out=folder / "out"))


def test_nobodys_files_are_lost(folder: Path) -> None:
    """A folder with something in it that is not ours is left as it is; so are rows that are read where they would be
    written."""
    out = folder / "out"
    out.mkdir()
    (folder / "rows.jsonl").rename(out / "data.jsonl")
    before = (out / "data.jsonl").read_bytes()
    reading = Wanted(config=config(folder), out=out, data=str(out / "data.jsonl"))
    with pytest.raises(AlreadyExists, match="not from-trl's: name another folder"):
        write(reading)
    (out / "from-trl.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"data\.jsonl: its rows would be written there"):
        write(reading)
    assert (out / "data.jsonl").read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == ["data.jsonl", "from-trl.json"]


def test_a_folder_is_of_one_config(folder: Path) -> None:
    """What is refused late leaves all files of before; another trainer's take their places, and none of the old ones
    stays beside them."""
    write(wanted(folder, config(folder)))
    out = folder / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (folder / "rows.jsonl").write_text('{"prompt": "another"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^run\.toml:[0-9]+: sampling\.temperature: "):
        write(
            wanted(folder, config(folder, temperature=-1.0, reward_funcs=["trl:mine:f"], reward_weights=None))
        )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "run").mkdir()
    row = {
        "prompt": [{"role": "user", "content": "a"}],
        "completion": [{"role": "assistant", "content": "b"}],
    }
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    path = folder / "sft.yaml"
    path.write_text("model_name_or_path: m\ncompletion_only_loss: true\n", encoding="utf-8")
    write(wanted(folder, path))
    assert sorted(path.name for path in out.iterdir()) == [
        "command.txt",
        "data.jsonl",
        "from-trl.json",
        "run",
    ]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []

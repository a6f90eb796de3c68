"""Learning from a file: DPO and ILQL in the trainer and in whole runs, without any rollout."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from orchestrator.local.in_process import run_in_process
from orchestrator.local.services import services_of
from services.common.errors import InvalidInput, Mismatch
from services.common.spec.library import IlqlSpec
from services.learner.algorithms.ilql import Heads, Transitions, ilql_loss
from services.learner.offline.batches import OfflineBatches
from services.learner.offline.dpo import DpoTrainer
from services.learner.offline.ilql import IlqlTrainer
from services.learner.offline.rows import Answer, Compared, load_rows
from services.learner.offline.trainer import OfflineTrainer
from tests.fakes.tiny_models import make_tiny_causal, tiny_tokenizer
from tests.fakes.tiny_runs import loaded_from, random_pairs, run_spec

PAIRS = random_pairs(10, longest=6)
ROWS = [Answer(prompt, completion, float(at % 3)) for at, (prompt, completion) in enumerate(PAIRS)]
COMPARED = [
    Compared(one, Answer(one.prompt_ids, other.completion_ids))
    for one, other in zip(ROWS[:5], ROWS[5:], strict=True)
]
ILQL = {"kind": "ilql", "tau": 0.8, "awac_beta": 0.5, "sync_every": 2, "alpha": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", layers=2)


def trainer_on(folder: Path, kind: str, **optimiser: Any) -> tuple[OfflineTrainer, list[Any]]:
    algorithm = {"kind": "dpo"} if kind == "dpo" else ILQL
    spec = run_spec(folder, algorithm=algorithm, optimiser={"learning_rate": 1e-3, **optimiser})
    loaded = loaded_from(folder)
    return (DpoTrainer(loaded, spec), COMPARED) if kind == "dpo" else (IlqlTrainer(loaded, spec, ROWS), ROWS)


def whole_logs(trainer: OfflineTrainer, row: Answer) -> torch.Tensor:
    """Log-softmax before each token of the answer, by the whole model."""
    ids = torch.tensor([*row.prompt_ids, *row.completion_ids], dtype=torch.long)[None]
    logits = trainer.model(input_ids=ids).logits.detach().float()[0, len(row.prompt_ids) - 1 : -1]
    return logits.log_softmax(-1)


def sum_logprob(trainer: OfflineTrainer, row: Answer) -> float:
    actions = torch.tensor(row.completion_ids, dtype=torch.long)[:, None]
    return float(whole_logs(trainer, row).gather(1, actions).sum())


@pytest.mark.parametrize("kind", ["dpo", "ilql"])
def test_any_micro_batches_give_the_same_step(folder: Path, kind: str) -> None:
    """Metrics and new weights do not depend on micro_batch_tokens."""
    found = []
    for tokens in (16, 4096):
        trainer, rows = trainer_on(folder, kind, micro_batch_tokens=tokens)
        found.append((trainer.step(rows), trainer.serving_weights()))
    (one, weights), (two, others) = found
    for name in one.keys() - {"time/update"}:
        assert one[name] == pytest.approx(two[name], abs=1e-5, rel=1e-4), name
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["dpo", "ilql"])
def test_resume_is_exact(folder: Path, kind: str) -> None:
    """Reference, heads, their targets and the optimiser go on as they were: the same metrics and bits."""
    trainer, rows = trainer_on(folder, kind)
    for _ in range(3):
        trainer.step(rows)
    resumed, _ = trainer_on(folder, kind)
    resumed.load_state_dict(copy.deepcopy(trainer.state_dict()))
    for _ in range(2):
        one, two = trainer.step(rows), resumed.step(rows)
        one.pop("time/update"), two.pop("time/update")
        assert one == two
    for name, value in trainer.serving_weights().items():
        assert torch.equal(value, resumed.serving_weights()[name])
    with pytest.raises(Mismatch, match=rf"the checkpoint is of algorithm\.kind = ppo, not {kind}"):
        resumed.load_state_dict(trainer.state_dict() | {"kind": "ppo"})


@pytest.mark.parametrize("embeddings", [False, True])
def test_dpo_begins_at_log_2_and_is_against_the_start(folder: Path, embeddings: bool) -> None:
    """Margins 0 at first; later beta times the difference of log-ratios to the starting model, sums over tokens."""
    trainer, rows = trainer_on(folder, "dpo", learning_rate=1e-2, train_embeddings=embeddings)
    start = [(sum_logprob(trainer, row.chosen), sum_logprob(trainer, row.rejected)) for row in rows]
    first = trainer.step(rows)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)
    margins = [
        0.1 * (sum_logprob(trainer, row.chosen) - chosen - sum_logprob(trainer, row.rejected) + rejected)
        for row, (chosen, rejected) in zip(rows, start, strict=True)
    ]
    second = trainer.step(rows)
    assert second["rewards/margins"] == pytest.approx(np.mean(margins), rel=1e-3)
    assert second["loss"] == pytest.approx(np.mean([math.log1p(math.exp(-one)) for one in margins]), rel=1e-4)
    assert [trainer.step(rows) for _ in range(20)][-1]["rewards/accuracies"] == 1


def test_ilql_learns_of_the_answers_tokens_with_standardised_rewards(folder: Path) -> None:
    """The first loss is ilql_loss of the whole model's logits and the heads, row by row."""
    trainer, rows = trainer_on(folder, "ilql")
    assert isinstance(trainer.spec.algorithm, IlqlSpec)
    rewards = np.array([row.reward for row in rows])
    rewards = (rewards - rewards.mean()) / rewards.std(ddof=1)
    steps, expected = sum(len(row.completion_ids) for row in rows), 0.0
    for row, reward in zip(rows, rewards, strict=True):
        ids = torch.tensor([*row.prompt_ids, *row.completion_ids], dtype=torch.long)[None]
        states = trainer.model.base_model(input_ids=ids).last_hidden_state.detach()[
            :, len(row.prompt_ids) - 1 :
        ]
        found: Heads = trainer.heads(states, whole_logs(trainer, row)[None])
        count = len(row.completion_ids)
        last = torch.zeros(1, count)
        last[0, -1] = 1
        data = Transitions(
            torch.tensor(row.completion_ids, dtype=torch.long)[None],
            float(reward) * last,
            torch.ones(1, count),
            1 - last,
        )
        expected += float(ilql_loss(found, data, trainer.spec.algorithm, steps=steps).total.detach())
    assert trainer.step(rows)["loss"] == pytest.approx(expected, rel=1e-4)


def test_the_targets_follow_every_few_updates(folder: Path) -> None:
    """With sync_every 2 and alpha 0.5: at rest after one update, half way to the Qs after two."""
    trainer, rows = trainer_on(folder, "ilql")
    target = next(trainer.heads.target_qs.parameters())
    before = target.detach().clone()
    trainer.step(rows)
    assert torch.equal(target, before)
    trainer.step(rows)
    source = next(trainer.heads.qs.parameters()).detach()
    torch.testing.assert_close(target.detach(), 0.5 * before + 0.5 * source)


def written(path: Path, kind: str, count: int = 6) -> str:
    rows = [
        {"prompt": f"question {at}", "chosen": "yes " * at, "rejected": "no"}
        if kind == "dpo"
        else {"prompt": f"question {at}", "completion": "yes " * at, "reward": at}
        for at in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("kind", ["dpo", "ilql"])
def test_a_run_over_a_file_and_its_resume(folder: Path, tmp_path: Path, kind: str) -> None:
    """Alone, without stages: four steps; stopped after two and resumed, the losses of steps 3 and 4 are the same."""
    algorithm = {"kind": "dpo"} if kind == "dpo" else ILQL
    data = {"prompts": written(tmp_path / "rows.jsonl", kind)}

    def run(out: str, steps: int) -> list[dict[str, Any]]:
        spec = run_spec(
            folder,
            algorithm=algorithm,
            data=data,
            steps=steps,
            rollout={"batch_groups": 4},
            checkpoint={"every_steps": 2},
            optimiser={"learning_rate": 1e-3},
        )
        assert services_of(spec) == ("learner",)
        run_in_process(spec, tmp_path / out)
        return [json.loads(line) for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]

    whole = run("whole", 4)
    run("cut", 2)
    resumed = run("cut", 4)
    assert [row["step"] for row in resumed] == [1, 2, 3, 4]
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]
    assert (whole[-1]["rollouts/trained"], whole[-1]["rollouts/in_flight"]) == (16, 0)
    assert (tmp_path / "whole" / "model" / "config.json").is_file()
    heads = tmp_path / "whole" / "model" / "ilql_heads.safetensors"
    assert heads.is_file() == (kind == "ilql")
    if kind == "ilql":
        assert any(name.startswith("target_qs") for name in load_file(heads))


def rows_of(source: Path | str, kind: str = "dpo") -> list[Any]:
    spec = run_spec(Path("m"), algorithm={"kind": kind}, data={"prompts": str(source)})
    return load_rows(spec, tiny_tokenizer(), context_length=128)


def told_by(answer: Answer) -> tuple[str, str]:
    """Prompt and completion as text."""
    tokenizer = tiny_tokenizer()
    return tokenizer.decode(answer.prompt_ids.tolist()), tokenizer.decode(answer.completion_ids.tolist())


ASKED, SAID = [{"role": "user", "content": "hi"}], "<|user|>hi<|end|><|assistant|>"
DIALOGUE = "\n\nHuman: hi\n\nAssistant:"


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "hi", "chosen": "yes", "rejected": "no"}, "hi"),
        ({"prompt": ASKED, "chosen": "yes", "rejected": "no"}, SAID),
        ({"prompt": ASKED, "chosen": said("yes"), "rejected": said("no")}, SAID),
        ({"chosen": [*ASKED, *said("yes")], "rejected": [*ASKED, *said("no")]}, SAID),
        ({"chosen": f"{DIALOGUE} yes", "rejected": f"{DIALOGUE} no"}, SAID),
        ({"prompt": None, "chosen": "hi yes", "rejected": "hi no", "split": None}, SAID),
    ],
    ids=["text", "answers in text", "messages", "implicit messages", "dialogues", "begun alike"],
)
def test_pairs_of_every_form_are_read(tmp_path: Path, row: dict[str, Any], prompt: str) -> None:
    """TRL's and HH-RLHF's: a pair all in text as it stands, any other prompt through the chat template."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    [found] = rows_of(path)
    assert (told_by(found.chosen), told_by(found.rejected)) == (
        (prompt, "yes<|end|>"),
        (prompt, "no<|end|>"),
    )


@pytest.mark.parametrize("prompt", ["hi", ASKED])
@pytest.mark.parametrize("completion", ["yes", said("yes")])
def test_an_answer_with_a_reward_is_text_or_a_message(tmp_path: Path, prompt: Any, completion: Any) -> None:
    """ILQL's rows, prompt and completion in either way each."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": prompt, "completion": completion, "reward": 2}) + "\n")
    [found] = rows_of(path, "ilql")
    assert told_by(found) == (SAID if prompt is ASKED else "hi", "yes<|end|>")
    assert found.reward == 2.0


def test_an_end_token_that_stands_there_is_not_doubled(tmp_path: Path) -> None:
    """As in TRL: an answer that ends with it in its text has it once, one within the answer is no end."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "hi", "chosen": "yes<|end|>", "rejected": "<|end|>no"}) + "\n")
    [found] = rows_of(path)
    assert (told_by(found.chosen)[1], told_by(found.rejected)[1]) == ("yes<|end|>", "<|end|>no<|end|>")


def test_rows_come_from_any_source(tmp_path: Path) -> None:
    """A JSON array, Parquet and a data set of `datasets` give the rows that JSON lines give."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `data` is not installed")
    arrow = pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    rows = [{"prompt": f"q{at}", "chosen": "yes", "rejected": "no"} for at in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    expected = [("q0", "yes<|end|>"), ("q1", "yes<|end|>"), ("q2", "yes<|end|>")]
    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
        assert [told_by(row.chosen) for row in rows_of(tmp_path / name)] == expected, name
    assert [told_by(row.chosen) for row in rows_of(f"datasets:{tmp_path}/saved")] == expected


def test_mistakes_in_the_file_are_told(tmp_path: Path) -> None:
    """File, line and field; a file of another length is another file; a task has no answers."""
    path = tmp_path / "rows.jsonl"
    for kind, row, told in (
        ("dpo", {"prompt": "a", "chosen": "b"}, "rejected: expected text or a list of messages"),
        ("dpo", {"prompt": ASKED, "chosen": "b", "rejected": 3}, "rejected: expected text or a list of"),
        ("dpo", {"prompt": " ", "chosen": "b", "rejected": "c"}, "prompt: expected text, or a list"),
        ("dpo", {"prompt": "a", "chosen": "\ud800", "rejected": "c"}, "chosen: expected text without NUL"),
        ("ilql", {"completion": "b", "reward": 1}, "prompt: expected text or a list of messages, got null"),
        ("ilql", {"prompt": "a", "completion": ASKED, "reward": 1}, "completion: expected an answer of the"),
        ("ilql", {"prompt": "a", "completion": "b", "reward": True}, "reward: expected a number, got true"),
        ("ilql", {"prompt": "a", "completion": "b", "reward": math.nan}, "reward: expected a finite number"),
        ("ilql", {"prompt": "a", "completion": "b"}, "reward: expected a number, there is none"),
        ("ilql", {"prompt": "a", "completion": "b" * 999, "reward": 1}, "but the model's context is"),
        ("dpo", 7, "row: expected a JSON object, got a number"),
    ):
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(InvalidInput, match=rf"rows\.jsonl:1: .*{told}"):
            rows_of(path, kind)
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c", "split": "test"}) + "\n")
    with pytest.raises(InvalidInput, match=r"rows\.jsonl: there is no row of split 'train' in it"):
        rows_of(path)
    with pytest.raises(InvalidInput, match="task:dates: a task has prompts alone, dpo learns from answers"):
        rows_of("task:dates")
    spec = run_spec(Path("m"), algorithm={"kind": "dpo"})
    state = OfflineBatches(spec, COMPARED).state()
    with pytest.raises(Mismatch, match="began with 5 rows, the file has 4"):
        OfflineBatches(spec, COMPARED[:4]).restore(state)

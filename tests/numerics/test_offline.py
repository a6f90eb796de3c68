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
from tests.fakes.tiny_models import make_tiny_causal
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


def test_mistakes_in_the_file_are_told(folder: Path, tmp_path: Path) -> None:
    """File, line and field; a file of another length is another file."""
    path, tokenizer = tmp_path / "rows.jsonl", loaded_from(folder).tokenizer
    for kind, row, told in (
        ("dpo", {"prompt": "a", "chosen": "b"}, "rejected: expected text"),
        ("ilql", {"prompt": "a", "completion": "b", "reward": True}, "reward: expected a finite number"),
        ("ilql", {"prompt": "a", "completion": "b" * 999, "reward": 1}, "but the model's context is"),
    ):
        path.write_text(json.dumps(row) + "\n")
        spec = run_spec(folder, algorithm={"kind": kind}, data={"prompts": str(path)})
        with pytest.raises(InvalidInput, match=rf"rows\.jsonl:1: .*{told}"):
            load_rows(spec, tokenizer, context_length=64)
    spec = run_spec(folder, algorithm={"kind": "dpo"})
    state = OfflineBatches(spec, COMPARED).state()
    with pytest.raises(Mismatch, match="began with 5 rows, the file has 4"):
        OfflineBatches(spec, COMPARED[:4]).restore(state)

"""T5 in the learner: the same numbers as transformers' own passes, the same steps however cut, and it learns."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.common.errors import ConfigError
from services.learner.offline.dpo import DpoTrainer
from services.learner.offline.ilql import IlqlTrainer
from services.learner.offline.rows import Answer, Compared
from services.learner.sample import Sample
from services.learner.training import Trainer
from services.policy.engines.base import Draft, Request, Sampling
from services.policy.engines.transformers_engine import TransformersEngine
from services.reference.logprobs import ReferenceModel
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_reward_model, make_tiny_t5, word_tokenizer
from tests.fakes.tiny_runs import loaded_from, random_pairs, run_spec, samples_from

SCORES = [1.0, -1.0, 0.5, 2.0, -0.5, 0.0]
PAIRS = random_pairs(len(SCORES), longest=8)
# What depends on the clock alone.
CLOCK = "time/update"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_t5(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Causal, with the policy's tokenizer."""
    return make_tiny_reward_model(tmp_path_factory.mktemp("models") / "reward")


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    return samples_from(loaded_from(folder), PAIRS, SCORES, noise=0.3)


def trainer_on(folder: Path, algorithm: dict[str, Any], **optimiser: Any) -> Trainer:
    spec = run_spec(folder, algorithm=algorithm, optimiser={"learning_rate": 1e-3, **optimiser})
    return Trainer(loaded_from(folder), spec)


def forward(trainer: Trainer, samples: list[Sample]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Log-probs and values of every sample, without gradient."""
    every = list(range(len(samples)))
    found = trainer._forward(samples, trainer._trunk(samples, [every]), every, gradient=False)
    return [found.logprobs[row] for row in every], [found.values[row] for row in every]


def whole_logs(model: Any, prompt: Any, completion: Any) -> torch.Tensor:
    """Log-softmax before each token of the completion by transformers' own forward, [completion, vocabulary]."""
    ids, labels = (torch.tensor(one, dtype=torch.long)[None] for one in (prompt, completion))
    with torch.no_grad():
        logs: torch.Tensor = model(input_ids=ids, labels=labels).logits[0].log_softmax(-1)
    return logs


def whole_logprobs(model: Any, prompt: Any, completion: Any) -> np.ndarray:
    chosen = torch.tensor(completion, dtype=torch.long)[:, None]
    found: np.ndarray = whole_logs(model, prompt, completion).gather(1, chosen)[:, 0].numpy()
    return found


def causal_logprobs(model: Any, prompt: Any, completion: Any) -> np.ndarray:
    ids = torch.tensor([*prompt, *completion], dtype=torch.long)[None]
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    found: np.ndarray = logs.gather(1, torch.tensor(completion, dtype=torch.long)[:, None])[:, 0].numpy()
    return found


# Copy the letter that stands before the sign `s`, behind up to two that do not count, and end.
PROMPTS = [
    np.array([*[2] * ahead, letter, 3], np.int32)
    for letter, ahead in itertools.product(range(4, 8), range(3))
]
EACH, END = 8, 0


def copied(prompt: Any, draft: Draft) -> float:
    """Half for the letter, half for the end right behind it."""
    letter, ended = bool(draft.token_ids[0] == prompt[-2]), bool(draft.token_ids[1:].tolist() == [END])
    return 0.5 * letter + 0.5 * ended


@pytest.mark.parametrize(
    ("make", "direct"),
    [(make_tiny_t5, whole_logprobs), (make_tiny_causal, causal_logprobs)],
    ids=["t5", "causal"],
)
def test_t5_against_causal_on_a_copy_task(
    tmp_path: Path, make: Callable[..., Path], direct: Callable[..., np.ndarray]
) -> None:
    """Both learn it by GRPO: sampled, from 1 in 10 to more than 9 in 10.

    Before and after, log-probs of engine, reference and learner are those of transformers' own forward, to 1e-5.
    """
    made = make(tmp_path / "tiny", width=32, tokenizer=word_tokenizer("x s a b c d"))
    algorithm = {
        "kind": "grpo",
        "num_generations": EACH,
        "beta": 0.0,
        "epochs": 4,
        "entropy_coefficient": 0.02,
    }
    trainer = trainer_on(made, algorithm, learning_rate=5e-3)
    policy = loaded_from(made)
    engine = TransformersEngine(policy)
    shares = []
    for step in range(16):
        sampling = Sampling(max_new_tokens=2, seed=step)
        requests = [
            Request(prompt_ids=prompt, sampling=sampling, index=EACH * row + at)
            for row, prompt in enumerate(PROMPTS)
            for at in range(EACH)
        ]
        drafts = engine.generate(requests, threading.Event())
        pairs = [(one.prompt_ids, draft.token_ids) for one, draft in zip(requests, drafts, strict=True)]
        scores = [copied(one.prompt_ids, draft) for one, draft in zip(requests, drafts, strict=True)]
        shares.append(float(np.mean(scores)))
        reference = ReferenceModel(policy, token_budget=64).compute(pairs, 1.0)
        samples = [
            Sample(
                prompt_ids=prompt,
                completion_ids=completion,
                behaviour_logprobs=draft.sampled_logprobs,
                reference_logprobs=logprobs,
                loss_mask=np.ones(len(completion), np.float32),
                score=score,
                ended=draft.finish == "stop",
                group=str(at // EACH),
            )
            for at, ((prompt, completion), draft, logprobs, score) in enumerate(
                zip(pairs, drafts, reference, scores, strict=True)
            )
        ]
        if step in (0, 15):
            learner, _ = forward(trainer, samples)
            for at in range(0, len(pairs), 5):
                expected = direct(policy.model, *pairs[at])
                for found in (drafts[at].raw_logprobs, reference[at], learner[at].numpy()):
                    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
        trainer.step(samples)
        engine.load_weights(trainer.serving_weights())
    assert shares[0] < 0.15
    assert np.mean(shares[-3:]) > 0.9


@pytest.mark.parametrize(
    ("value_model", "frozen_layers"), [("shared", 0), ("policy", 2), ("reward_model", 3), ("shared", 4)]
)
def test_any_micro_batches_give_the_same_step(
    folder: Path, reward_folder: Path, samples: list[Sample], value_model: str, frozen_layers: int
) -> None:
    """Metrics and weights, with every critic, with the encoder trained, frozen in part, whole, and the decoder too."""
    critic = {"value_model_path": str(reward_folder)} if value_model == "reward_model" else {}
    algorithm = {"epochs": 2, "minibatches": 2, "value_model": value_model, **critic}
    found = []
    for tokens in (16, 4096):
        trainer = trainer_on(folder, algorithm, micro_batch_tokens=tokens, frozen_layers=frozen_layers)
        found.append((trainer.step(samples), trainer.serving_weights()))
    (one, weights), (two, others) = found
    for name in one.keys() - {CLOCK}:
        assert one[name] == pytest.approx(two[name], abs=2e-5, rel=1e-4), name
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], atol=5e-6, rtol=0, msg=name)


def test_frozen_layers_stay_and_the_others_move(folder: Path, samples: list[Sample]) -> None:
    """With the encoder and a layer of the decoder frozen only the decoder above is another after a step."""
    trainer = trainer_on(folder, {"epochs": 1}, frozen_layers=4)
    before = {name: value.clone() for name, value in trainer.serving_weights().items()}
    trainer.step(samples)
    moved = {
        name for name, value in trainer.serving_weights().items() if not torch.equal(value, before[name])
    }
    assert moved
    assert all(name.startswith(("decoder.block.1.", "decoder.final_layer_norm")) for name in moved)


def test_values_are_read_where_tokens_are_predicted(folder: Path, samples: list[Sample]) -> None:
    """A head on the decoder's last states before the tied head's scale, at each place that predicts a token."""
    trainer = trainer_on(folder, {"epochs": 1})
    assert trainer.critic is not None
    for parameter in trainer.critic.head.parameters():
        parameter.data.fill_(1.0 if parameter.dim() == 2 else 0.0)
    _, values = forward(trainer, samples)
    states: list[torch.Tensor] = []
    model = trainer.model
    model.get_decoder().register_forward_hook(lambda _, __, out: states.append(out.last_hidden_state))
    for sample, found in zip(samples, values, strict=True):
        states.clear()
        whole_logs(model, sample.prompt_ids, sample.completion_ids)
        torch.testing.assert_close(found, states[0][0].sum(-1), atol=1e-4, rtol=1e-5)


def test_resume_is_exact(folder: Path, samples: list[Sample]) -> None:
    """The same metrics and bits as without the interruption, with a critic of its own."""
    algorithm = {"epochs": 2, "value_model": "policy"}
    trainer, resumed = trainer_on(folder, algorithm), trainer_on(folder, algorithm)
    trainer.step(samples)
    resumed.load_state_dict(copy.deepcopy(trainer.state_dict()))
    one, two = trainer.step(samples), resumed.step(samples)
    assert {**one, CLOCK: 0} == {**two, CLOCK: 0}
    for name, value in trainer.serving_weights().items():
        assert torch.equal(value, resumed.serving_weights()[name])


def test_a_trust_region_step_is_what_is_told(folder: Path, samples: list[Sample]) -> None:
    """The exact KL of the model before to the model after is TRPO's, above 0 and within its radius."""
    trainer = trainer_on(folder, {"kind": "trpo", "kl": {"coefficient": 0.0}, "target_kl": 0.02})

    def logs() -> torch.Tensor:
        return torch.cat([whole_logs(trainer.model, one.prompt_ids, one.completion_ids) for one in samples])

    before = logs()
    metrics = trainer.step(samples)
    exact = float((before.exp() * (before - logs())).sum(-1).mean())
    assert metrics["policy/step_accepted"] == 1
    assert metrics["policy/step_kl"] == pytest.approx(exact, rel=1e-3)
    assert 0.3 * 0.02 < exact <= 0.02


def test_a_trust_region_step_in_bfloat16_beside_frozen_layers(folder: Path, samples: list[Sample]) -> None:
    """Computed in float32 over layers of the encoder that stay as they are; what is served is its cast."""
    spec = run_spec(
        folder, algorithm={"kind": "trpo", "kl": {"coefficient": 0.0}}, optimiser={"frozen_layers": 1}
    )
    trainer = Trainer(loaded_from(folder, "bfloat16"), spec)
    before = {name: value.clone() for name, value in trainer.serving_weights().items()}
    assert trainer.step(samples)["policy/step_accepted"] == 1
    assert trainer.optimiser.matches()
    moved = {
        name for name, value in trainer.serving_weights().items() if not torch.equal(value, before[name])
    }
    assert moved
    assert not {name for name in moved if name.startswith(("encoder.block.0.", "shared"))}


def test_dpo_is_against_the_start(folder: Path) -> None:
    """log 2 at first, then the margins of the model's own log-probs against those of the start."""
    rows = [
        Compared(Answer(prompt, chosen), Answer(prompt, rejected))
        for (prompt, chosen), (_, rejected) in itertools.pairwise(PAIRS)
    ]
    spec = run_spec(folder, algorithm={"kind": "dpo"}, optimiser={"learning_rate": 1e-2, "frozen_layers": 1})
    trainer = DpoTrainer(loaded_from(folder), spec)

    def margin(row: Compared) -> float:
        good, bad = (
            float(whole_logprobs(trainer.model, one.prompt_ids, one.completion_ids).sum())
            for one in (row.chosen, row.rejected)
        )
        return good - bad

    start = [margin(row) for row in rows]
    assert trainer.step(rows)["loss"] == pytest.approx(math.log(2), abs=1e-5)
    expected = 0.1 * np.mean([margin(row) - before for row, before in zip(rows, start, strict=True)])
    assert trainer.step(rows)["rewards/margins"] == pytest.approx(expected, rel=1e-3)


def test_ilql_learns_from_answers(folder: Path) -> None:
    """Any micro-batches give the same step; its cross entropy with equal weights is the mean -log-prob."""
    rows = [Answer(prompt, completion, float(at % 3)) for at, (prompt, completion) in enumerate(PAIRS)]
    found = []
    for tokens in (16, 4096):
        algorithm = {"kind": "ilql", "awac_beta": 0.0}
        spec = run_spec(folder, algorithm=algorithm, optimiser={"micro_batch_tokens": tokens})
        found.append(IlqlTrainer(loaded_from(folder), spec, rows).step(rows))
    for name in found[0].keys() - {CLOCK}:
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-5, rel=1e-4), name
    model = loaded_from(folder).model
    own = np.concatenate([whole_logprobs(model, *pair) for pair in PAIRS])
    assert found[0]["losses/awac"] == pytest.approx(-own.mean(), rel=1e-4)


def test_texts_beside_rollouts_are_refused(folder: Path) -> None:
    """PPO-ptx with an encoder-decoder ends at start, in one line."""
    spec = run_spec(
        folder, algorithm={"ptx_coefficient": 1.0}, data={"prompts": "none.jsonl", "texts": "t.jsonl"}
    )
    with pytest.raises(ConfigError, match="ptx_coefficient: texts are learnt by causal models"):
        Trainer(loaded_from(folder), spec, [np.arange(4, dtype=np.int32)])


def test_masked_tokens_teach_nothing(folder: Path, samples: list[Sample]) -> None:
    """What a masked last token is makes no difference to the step."""
    algorithm = {"kl": {"coefficient": 0.0}, "epochs": 1}
    found = []
    for token in (5, 200):
        changed = []
        for sample in samples:
            ids, mask = sample.completion_ids.copy(), sample.loss_mask.copy()
            ids[-1], mask[-1] = token, 0
            changed.append(replace(sample, completion_ids=ids, loss_mask=mask, group=""))
        trainer = trainer_on(folder, algorithm)
        trainer.step([one for one in changed if len(one.completion_ids) > 1])
        found.append(trainer.serving_weights())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-7, rtol=0, msg=name)

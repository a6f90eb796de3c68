"""The trainer with each algorithm: cut as one likes, resumed exactly, told by TRL's names, and it learns."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.common.errors import Mismatch
from services.common.spec.algorithms import OtherSpec
from services.learner import training
from services.learner.algorithms import registry
from services.learner.algorithms.base import Algorithm, Current, Loss, Part, Rollouts, Targets
from services.learner.sample import Sample
from services.learner.training import Trainer
from services.policy.engines.base import Request, Sampling
from services.policy.engines.transformers_engine import TransformersEngine
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, random_pairs, run_spec, samples_from

Stepped = tuple[dict[str, float], dict[str, torch.Tensor]]
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"kind": "grpo", "num_generations": 3, "beta": 0.1},
    "gspo": {
        "kind": "grpo",
        "num_generations": 3,
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epochs": 2,
    },
    "rloo": {"kind": "rloo", "num_generations": 3, "minibatches": 2},
    "reinforce++": {"kind": "reinforce++", "epochs": 2},
    "a2c": {"kind": "a2c"},
    "rft": {"kind": "rft", "num_generations": 3, "keep": 2},
    "own critic": {"kind": "ppo", "value_model": "policy", "score_position": "past_end", "minibatches": 2},
    "trpo": {"kind": "trpo", "critic_passes": 2, "cg_steps": 4, "whiten_advantages": False},
    "nlpo": {"kind": "nlpo", "epochs": 2, "minibatches": 2, "refresh_every": 3},
    "per minibatch": {"kind": "ppo", "preset": "openai-2019", "epochs": 2, "minibatches": 2},
}


class Mine(Algorithm[OtherSpec]):
    """Values are fitted to the scores; nothing else is learnt."""

    critic = True

    def targets(self, rollouts: Rollouts, kl_coefficient: float) -> Targets:
        rewards = rollouts.scores[:, None] * rollouts.mask
        none = torch.zeros_like(rewards)
        return Targets(
            advantages=none, returns=rewards, rewards=rewards, kl=none, kl_coefficient=kl_coefficient
        )

    def loss(self, current: Current, part: Part) -> Loss:
        missed = (current.values - part.targets.returns) ** 2
        return Loss((missed * part.by_token).sum(), {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", layers=2)


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    """Six completions of two prompts."""
    scores = [1.0, -1.0, 0.5, 2.0, -0.5, 0.0]
    found = samples_from(loaded_from(folder), random_pairs(6), scores, noise=0.3)
    return [
        replace(sample, group=f"prompt {at // 3}", action_masks=masks_around(sample.completion_ids, seed=at))
        for at, sample in enumerate(found)
    ]


def masks_around(ids: Any, *, seed: int) -> Any:
    """About half of the vocabulary at each token, its own among them; only NLPO looks at them."""
    allowed = np.random.default_rng(seed).random((len(ids), 263)) < 0.5
    allowed[np.arange(len(ids)), ids] = True
    return np.packbits(allowed, axis=1, bitorder="little")


def trainer_on(folder: Path, algorithm: dict[str, Any], **optimiser: Any) -> Trainer:
    tables = {"algorithm": algorithm, "optimiser": {"learning_rate": 1e-3, **optimiser}}
    return Trainer(loaded_from(folder), run_spec(folder, **tables))


def check_same(first: Stepped, second: Stepped) -> None:
    """Metrics and new weights of two steps agree as far as the order of sums lets them."""
    (one, weights), (two, others) = first, second
    for metric in one.keys() - {"time/update"}:
        assert one[metric] == pytest.approx(two[metric], abs=2e-5, rel=1e-4), metric
    for key, value in weights.items():
        # Adam divides by the gradient's own size: of a tiny one the rounding is visible.
        torch.testing.assert_close(value, others[key], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_any_micro_batches_give_the_same_step(folder: Path, samples: list[Sample], name: str) -> None:
    """Metrics and new weights do not depend on micro_batch_tokens."""
    results = []
    for tokens in (16, 4096):
        trainer = trainer_on(folder, ALGORITHMS[name], micro_batch_tokens=tokens)
        results.append((trainer.step(samples), trainer.serving_weights()))
    check_same(*results)


@pytest.mark.parametrize("name", ["grpo", "a2c"])
def test_what_a_gpu_has_no_room_for_is_passed_twice(
    folder: Path, samples: list[Sample], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of one update keeps the graph of one micro-batch there, not those of all: the numbers are the same."""
    results = []
    for held in (True, False):
        monkeypatch.setattr(training, "holds_all", lambda _device, _parts, held=held: held)
        trainer = trainer_on(folder, ALGORITHMS[name], micro_batch_tokens=16)
        results.append((trainer.step(samples), trainer.serving_weights()))
    check_same(*results)


def test_all_graphs_are_held_on_a_processor_alone() -> None:
    """Micro-batches are what a GPU's memory has room for."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert training.holds_all(cpu, 9) and training.holds_all(gpu, 1)
    assert not training.holds_all(gpu, 2)


def test_an_algorithm_of_ones_own_has_the_values_that_it_asks_for(
    folder: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without settings for a critic it is a head on the policy's trunk, which learns."""
    monkeypatch.setitem(registry.ALGORITHMS, "mine", Mine)
    trainer = trainer_on(folder, {"kind": "other", "name": "mine"})
    trainer.step(samples)
    assert trainer.critic is not None
    assert float(trainer.critic.head.weight.detach().abs().max()) > 0


def test_a_checkpoint_of_another_algorithm_is_refused(folder: Path, samples: list[Sample]) -> None:
    """In one line, whatever the two have in common; a checkpoint of before, which does not say, is taken."""
    trainer = trainer_on(folder, ALGORITHMS["grpo"])
    trainer.step(samples)
    state = trainer.state_dict()
    for name in ("a2c", "nlpo", "rloo"):
        with pytest.raises(Mismatch, match=r"the checkpoint is of algorithm\.kind = grpo, not"):
            trainer_on(folder, ALGORITHMS[name]).load_state_dict(copy.deepcopy(state))
    del state["kind"]
    trainer_on(folder, ALGORITHMS["grpo"]).load_state_dict(copy.deepcopy(state))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_resume_is_exact(folder: Path, samples: list[Sample], name: str) -> None:
    """After a round trip through the state the next step gives the same metrics and bits."""
    trainer = trainer_on(folder, ALGORITHMS[name])
    trainer.step(samples)
    resumed = trainer_on(folder, ALGORITHMS[name])
    resumed.load_state_dict(copy.deepcopy(trainer.state_dict()))
    one, two = trainer.step(samples), resumed.step(samples)
    one.pop("time/update"), two.pop("time/update")
    assert one == two
    for key, value in trainer.serving_weights().items():
        assert torch.equal(value, resumed.serving_weights()[key])


def test_groups_are_told_by_trls_names(folder: Path, samples: list[Sample]) -> None:
    """Mean and Bessel-corrected deviation of six scores, no group without a spread; kl only in the loss."""
    metrics = trainer_on(folder, ALGORITHMS["grpo"]).step(samples)
    scores = np.array([sample.score for sample in samples])
    assert metrics["reward"] == pytest.approx(scores.mean())
    assert metrics["reward_std"] == pytest.approx(scores.std(ddof=1))
    assert metrics["frac_reward_zero_std"] == 0
    assert metrics["objective/non_score_reward"] == 0
    assert metrics["objective/kl_coef"] == 0.1
    assert metrics["kl"] > 0
    assert metrics["clip_ratio/region_mean"] == 0
    assert "val/var_explained" not in metrics


def test_a_group_without_a_spread_moves_nothing(folder: Path, samples: list[Sample]) -> None:
    """With beta 0 and equal scores every gradient is 0: not one bit of the served weights changes."""
    trainer = trainer_on(folder, {"kind": "grpo", "num_generations": 3})
    before = {name: value.clone() for name, value in trainer.serving_weights().items()}
    metrics = trainer.step([replace(sample, score=1.5) for sample in samples])
    assert metrics["grad_norm"] == 0
    assert metrics["frac_reward_zero_std"] == 1
    assert all(torch.equal(value, before[name]) for name, value in trainer.serving_weights().items())


def test_an_engine_far_off_is_masked_or_bounded(folder: Path, samples: list[Sample]) -> None:
    """Engine log-probs 2 lower by token make a completion's ratio e^(2n): beyond the cap of 3 nothing is learnt."""
    far = [replace(sample, behaviour_logprobs=sample.behaviour_logprobs - 2) for sample in samples]
    metrics = trainer_on(folder, {"kind": "grpo", "num_generations": 3}).step(far)
    assert metrics["sampling/importance_sampling_ratio/max"] == 0
    assert metrics["grad_norm"] == 0
    bounded = {"kind": "ppo", "importance_sampling": {"mode": "token_truncate"}}
    told = trainer_on(folder, bounded).step(far)
    assert told["sampling/importance_sampling_ratio/mean"] == pytest.approx(2.0)


def test_one_completion_beyond_any_number_is_masked_alone(folder: Path, samples: list[Sample]) -> None:
    """A ratio too large for float32 is left out like any other beyond the cap, and the rest is learnt from."""
    lost = replace(samples[0], behaviour_logprobs=samples[0].behaviour_logprobs - 60)
    metrics = trainer_on(folder, {"kind": "grpo", "num_generations": 3}).step([lost, *samples[1:]])
    assert metrics["sampling/importance_sampling_ratio/min"] == 0
    assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(1.0, abs=1e-4)
    assert 0 < metrics["grad_norm"] < 1e6


@pytest.mark.parametrize("penalty", [1.0, 0.0])
def test_a_missing_end_may_replace_the_score(folder: Path, samples: list[Sample], penalty: float) -> None:
    """Three of six have no end: their scores become minus the penalty, which may be 0, the others stay."""
    algorithm = {"kind": "ppo", "missing_end_penalty": penalty, "missing_end_replaces": True, "epochs": 1}
    metrics = trainer_on(folder, algorithm).step(samples)
    expected = np.mean([sample.score if sample.ended else -penalty for sample in samples])
    assert metrics["objective/rlhf_reward"] - metrics["objective/non_score_reward"] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["grpo", "rloo", "reinforce++", "a2c"])
def test_a_toy_task_is_learnt(tmp_path: Path, kind: str) -> None:
    """Paid for the share of one token, the policy draws it far more often than the 1 in 20 of the start."""
    algorithm: dict[str, Any] = {"kind": kind}
    algorithm |= {"num_generations": 8} if kind in ("grpo", "rloo") else {"kl": {"coefficient": 0.0}}
    folder = make_tiny_causal(tmp_path / "wide", width=32)
    loaded, tables = loaded_from(folder), {"optimiser": {"learning_rate": 1e-2}, "algorithm": algorithm}
    trainer = Trainer(loaded, run_spec(folder, **tables))
    engine, prompt = TransformersEngine(loaded), np.array([100], np.int32)
    wanted, shares = -1, []
    for step in range(40):
        sampling = Sampling(max_new_tokens=4, min_new_tokens=4, seed=step)
        requests = [Request(prompt_ids=prompt, sampling=sampling, index=at) for at in range(64)]
        drafts = engine.generate(requests, threading.Event())
        if wanted < 0:
            wanted = int(np.bincount(np.concatenate([draft.token_ids for draft in drafts])).argmax())
        scores = [float(np.mean(draft.token_ids == wanted)) for draft in drafts]
        shares.append(float(np.mean(scores)))
        learnt = samples_from(loaded, [(prompt, draft.token_ids) for draft in drafts], scores)
        trainer.step([replace(sample, group=str(at // 8)) for at, sample in enumerate(learnt)])
    assert shares[0] < 0.1
    assert np.mean(shares[-3:]) > 0.6

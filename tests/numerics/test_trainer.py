"""One PPO step as a whole: independent of how it is cut, exact after a resume, and it learns."""

from __future__ import annotations

import copy
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.learner.sample import Sample
from services.learner.step_metrics import update_metrics
from services.learner.training import Trainer
from services.models.loading import LoadedModel
from services.models.logprobs import completion_logprobs
from services.policy.engines.base import Request, Sampling
from services.policy.engines.transformers_engine import TransformersEngine
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, random_pairs, run_spec, samples_from

SCORES = [1.0, -1.0, 0.5, 2.0, -0.5, 0.0, 1.5]
# What depends on the clock alone.
CLOCK = {"time/update"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", layers=3)


def trainer_on(folder: Path, *, dtype: str = "float32", **tables: Any) -> tuple[Trainer, LoadedModel]:
    loaded = loaded_from(folder, dtype)
    optimiser = {"learning_rate": 1e-3, **tables.pop("optimiser", {})}
    return Trainer(loaded, run_spec(folder, optimiser=optimiser, **tables)), loaded


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.serving_weights().items()}


def stepped(folder: Path, samples: list[Sample], **tables: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics and weights after one step from the folder's weights."""
    trainer, _ = trainer_on(folder, **tables)
    metrics = trainer.step(samples)
    return metrics, weights_of(trainer)


def assert_same(one: tuple[Any, Any], two: tuple[Any, Any], *, but: frozenset[str] = frozenset()) -> None:
    """Metrics and weights agree to float32's rounding."""
    for name in one[0].keys() - CLOCK - but:
        assert one[0][name] == pytest.approx(two[0][name], abs=2e-5, rel=1e-4), name
    for name in one[1]:
        torch.testing.assert_close(one[1][name], two[1][name], atol=2e-6, rtol=0, msg=name)


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    return samples_from(loaded_from(folder), random_pairs(len(SCORES)), SCORES, noise=0.3)


@pytest.mark.parametrize(
    "algorithm", [{"epochs": 1}, {"epochs": 2, "minibatches": 2}], ids=["single update", "four updates"]
)
@pytest.mark.parametrize("trained", [{}, {"frozen_layers": 2}, {"train_embeddings": True}])
def test_any_micro_batches_give_the_same_step(
    folder: Path, samples: list[Sample], algorithm: dict[str, int], trained: dict[str, int]
) -> None:
    """Loss, metrics and new weights do not depend on micro_batch_tokens: sums are divided by the whole batch."""
    results = [
        stepped(
            folder,
            samples,
            algorithm=algorithm,
            optimiser={"micro_batch_tokens": tokens, **trained},
        )
        for tokens in (16, 40, 4096)
    ]
    assert_same(results[0], results[2])
    assert_same(results[1], results[2])


def test_the_single_pass_is_the_explicit_one(folder: Path, samples: list[Sample]) -> None:
    """With one update, taking the update's own pass for the proximal one gives the same step.

    One sample in two minibatches is one update with a proximal pass of its own.
    """
    single = stepped(folder, samples[:1], algorithm={"epochs": 1})
    explicit = stepped(folder, samples[:1], algorithm={"epochs": 1, "minibatches": 2})
    assert_same(single, explicit)
    assert single[0]["val/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert single[0]["policy/entropy_avg"] > 0


def first_gradient(trainer: Trainer, samples: list[Sample]) -> torch.Tensor:
    """Of the first update, in the optimiser's float32 sums, flat."""
    found: list[torch.Tensor] = []
    update = trainer.optimiser.step

    def noted(factor: float) -> float:
        masters = [master for _, master in trainer.optimiser._pairs if master.grad is not None]
        found.append(torch.cat([one.grad.flatten().clone() for one in masters if one.grad is not None]))
        return update(factor)

    trainer.optimiser.step = noted  # type: ignore[method-assign]
    trainer.step(samples)
    return found[0]


def test_a_single_updates_micro_batches_are_summed_in_float32(folder: Path, samples: list[Sample]) -> None:
    """In bfloat16 the single pass gives the gradient that explicit ones give, sums of micro-batches in float32."""
    gradients = [
        first_gradient(
            trainer_on(
                folder, dtype="bfloat16", algorithm={"epochs": epochs}, optimiser={"micro_batch_tokens": 16}
            )[0],
            samples,
        )
        for epochs in (1, 2)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-5)
    assert (gradients[0].bfloat16().float() != gradients[0]).float().mean() > 0.5


def test_embeddings_learn_where_that_is_asked_for(folder: Path, samples: list[Sample]) -> None:
    """train_embeddings moves the tied embeddings, also beside a value model with its own; otherwise not a bit moves."""
    for algorithm in ({"epochs": 1}, {"epochs": 2, "value_model": "policy"}):
        for train in (False, True):
            trainer, _ = trainer_on(folder, algorithm=algorithm, optimiser={"train_embeddings": train})
            before = weights_of(trainer)["model.embed_tokens.weight"]
            trainer.step(samples)
            assert torch.equal(weights_of(trainer)["model.embed_tokens.weight"], before) is not train


def test_losses_and_weights_by_hand(folder: Path, samples: list[Sample]) -> None:
    """One step of a whole-model computation with torch alone gives the trainer's losses and gradient norm."""
    trainer, loaded = trainer_on(folder, algorithm={"epochs": 1, "kl": {"coefficient": 0.1}})
    metrics = trainer.step(samples)
    model = loaded_from(folder).model
    for parameter in model.get_input_embeddings().parameters():
        parameter.requires_grad_(False)
    rows = []
    for sample in samples:
        ids = np.concatenate([sample.prompt_ids, sample.completion_ids]).astype(np.int64)
        logs = model(torch.tensor(ids[None])).logits[0].log_softmax(-1)
        places = torch.arange(len(sample.prompt_ids) - 1, len(ids) - 1)
        rows.append(logs[places, torch.tensor(ids[len(sample.prompt_ids) :])])
    # Values are 0 at the start: delta_t = r_t, so A_t = sum of 0.95^l r_{t+l}.
    advantages = []
    for sample, logprobs in zip(samples, rows, strict=True):
        rewards = -0.1 * (logprobs.detach().numpy() - sample.reference_logprobs)
        rewards[-1] += sample.score
        later = [sum(0.95**k * r for k, r in enumerate(rewards[at:])) for at in range(len(rewards))]
        advantages.append(torch.tensor(later, dtype=torch.float32))
    flat = torch.cat(advantages)
    whitened = (flat - flat.mean()) * torch.rsqrt(flat.var() + 1e-8)
    logprobs = torch.cat(rows)
    # At a ratio of 1 the loss is minus the mean advantage, 0; its gradient is not.
    policy_loss = (-whitened * torch.exp(logprobs - logprobs.detach())).mean()
    policy_loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    # The value head's gradients: 0.1 * mean(-(returns)) * state for the weight; here only the bias' is by hand.
    assert metrics["loss/policy_avg"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["loss/value_avg"] == pytest.approx(float(0.5 * flat.square().mean()), rel=1e-4)
    assert metrics["grad_norm"] >= float(torch.cat(grads).norm()) * 0.9999
    expected_kl = [
        float((row.detach().numpy() - s.reference_logprobs).sum())
        for row, s in zip(rows, samples, strict=True)
    ]
    assert metrics["objective/kl"] == pytest.approx(np.mean(expected_kl), abs=1e-5)
    assert metrics["objective/scores"] == pytest.approx(np.mean(SCORES))
    assert metrics["objective/rlhf_reward"] == pytest.approx(
        np.mean(SCORES) - 0.1 * np.mean(expected_kl), abs=1e-5
    )
    assert metrics["val/num_eos_tokens"] == 3
    assert metrics["completions/mean_length"] == pytest.approx(len(flat) / len(samples))
    # Adam's first step moves every weight by the rate against its gradient's sign.
    moved = {name: value for name, value in loaded.model.named_parameters() if value.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            sure = parameter.grad.abs() > 1e-4
            step = (moved[name].detach() - parameter.detach())[sure]
            torch.testing.assert_close(step, -1e-3 * parameter.grad[sure].sign(), atol=2e-5, rtol=0)


def test_what_several_updates_tell(folder: Path, samples: list[Sample]) -> None:
    """Means over the updates, and of ratios 1, 1.5 and 2 the unbiased variance 0.25; of one update there is none."""
    updates = [{"val/ratio": ratio, "grad_norm": 2 * ratio} for ratio in (1.0, 1.5, 2.0)]
    assert update_metrics(updates) == {"val/ratio": 1.5, "grad_norm": 3.0, "val/ratio_var": 0.25}
    assert update_metrics(updates[:1]) == {"val/ratio": 1.0, "grad_norm": 2.0}
    assert stepped(folder, samples, algorithm={"epochs": 2})[0]["val/ratio_var"] > 0
    assert "val/ratio_var" not in stepped(folder, samples, algorithm={"epochs": 1})[0]


def test_kl_is_zero_at_step_zero(folder: Path) -> None:
    """Samples of the reference itself have a sequence KL of 0 within 1e-4, and agree with the engine's log-probs."""
    trainer, _ = trainer_on(folder, algorithm={"epochs": 1}, sampling={"temperature": 0.7})
    pairs = random_pairs(7)
    metrics = trainer.step(samples_from(loaded_from(folder), pairs, SCORES, temperature=0.7))
    assert abs(metrics["objective/kl"]) < 1e-4
    assert metrics["sampling/logprob_difference"] < 1e-5
    assert metrics["objective/non_score_reward"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resume_is_exact(folder: Path, samples: list[Sample], dtype: str) -> None:
    """After a round trip through the state the next step gives the same metrics and bits as without it."""
    tables: dict[str, Any] = {
        "dtype": dtype,
        "algorithm": {"epochs": 2, "normalise_scores": True, "kl": {"kind": "adaptive", "target": 0.5}},
        "optimiser": {"schedule": "linear", "frozen_layers": 1},
    }
    trainer, _ = trainer_on(folder, **tables)
    for _ in range(2):
        trainer.step(samples)
    resumed, _ = trainer_on(folder, **tables)
    resumed.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert resumed.step_number == 2
    for name, value in trainer.serving_weights().items():
        assert torch.equal(value, resumed.serving_weights()[name]), name
    one, two = trainer.step(samples), resumed.step(samples)
    assert {k: v for k, v in one.items() if k not in CLOCK} == {
        k: v for k, v in two.items() if k not in CLOCK
    }
    assert one["episode"] == 3 * len(samples)
    for name, value in trainer.serving_weights().items():
        assert torch.equal(value, resumed.serving_weights()[name]), name
    assert trainer.optimiser.matches()


def test_masked_tokens_teach_nothing(folder: Path, samples: list[Sample]) -> None:
    """What the reference says of a masked token changes nothing; without any counted token nothing moves."""
    masked, other = [], []
    for sample in samples:
        mask = np.ones_like(sample.loss_mask)
        mask[::2] = 0
        lies = np.where(mask > 0, sample.reference_logprobs, -50).astype(np.float32)
        masked.append(replace(sample, loss_mask=mask))
        other.append(replace(sample, loss_mask=mask, reference_logprobs=lies))
    tables: dict[str, Any] = {"algorithm": {"epochs": 2}}
    assert_same(stepped(folder, masked, **tables), stepped(folder, other, **tables))
    trainer, _ = trainer_on(folder, **tables)
    before = weights_of(trainer)
    metrics = trainer.step([replace(s, loss_mask=np.zeros_like(s.loss_mask)) for s in samples])
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(torch.equal(value, before[name]) for name, value in trainer.serving_weights().items())


def test_missing_end_is_penalised_and_the_coefficient_adapts(folder: Path, samples: list[Sample]) -> None:
    """4 of 7 samples have no end: the mean reward falls by 4/7; beta follows the KL with n = 7 episodes."""
    plain, _ = stepped(folder, samples, algorithm={"epochs": 1})
    tables: dict[str, Any] = {
        "algorithm": {
            "epochs": 1,
            "missing_end_penalty": 1.0,
            "kl": {"kind": "adaptive", "coefficient": 0.05, "target": 1e-6, "horizon": 70},
        }
    }
    trainer, _ = trainer_on(folder, **tables)
    metrics = trainer.step([replace(s, reference_logprobs=s.reference_logprobs - 1) for s in samples])
    # Raw scores are reported as they came.
    assert metrics["objective/scores"] == plain["objective/scores"]
    lost = (
        metrics["objective/scores"] + metrics["objective/non_score_reward"] - metrics["objective/rlhf_reward"]
    )
    assert lost == pytest.approx(4 / 7, abs=1e-5)
    assert metrics["completions/clipped_ratio"] == pytest.approx(4 / 7)
    assert metrics["objective/kl_coef"] == 0.05
    # The KL is far above the target: 0.05 * (1 + 0.2 * 7 / 70).
    assert trainer.kl.coefficient == pytest.approx(0.051)


def test_scores_beyond_their_bounds_gain_nothing(folder: Path, samples: list[Sample]) -> None:
    """The mean reward is that of the clipped scores; what is reported as the score stays as it came."""
    low, high = -0.5, 0.5
    spread = [
        replace(sample, score=value)
        for sample, value in zip(samples, (-3, -1, 0, 0.2, 0.4, 1, 9), strict=True)
    ]
    metrics, _ = stepped(folder, spread, algorithm={"epochs": 1, "clip_scores": [low, high]})
    clipped = sum(min(max(sample.score, low), high) for sample in spread) / len(spread)
    assert metrics["objective/scores"] == pytest.approx(sum(sample.score for sample in spread) / len(spread))
    reward = metrics["objective/rlhf_reward"] - metrics["objective/non_score_reward"]
    assert reward == pytest.approx(clipped, abs=1e-5)


def test_a_toy_task_is_learnt(tmp_path: Path) -> None:
    """Paid for the share of one token, the policy draws it more and more: from 1 in 20 to nearly always."""
    trainer, loaded = trainer_on(
        make_tiny_causal(tmp_path / "wide", width=32),
        algorithm={"epochs": 4, "kl": {"coefficient": 0.0}},
        optimiser={"learning_rate": 1e-2},
    )
    engine, prompt = TransformersEngine(loaded), np.array([100], np.int32)
    wanted, shares = -1, []
    for step in range(30):
        sampling = Sampling(max_new_tokens=4, min_new_tokens=4, seed=step)
        requests = [Request(prompt_ids=prompt, sampling=sampling, index=at) for at in range(64)]
        drafts = engine.generate(requests, threading.Event())
        if wanted < 0:
            wanted = int(np.bincount(np.concatenate([draft.token_ids for draft in drafts])).argmax())
        scores = [float(np.mean(draft.token_ids == wanted)) for draft in drafts]
        shares.append(float(np.mean(scores)))
        trainer.step(samples_from(loaded, [(prompt, draft.token_ids) for draft in drafts], scores))
    assert shares[0] < 0.1
    assert np.mean(shares[-3:]) > 0.9


def test_updates_reach_the_engine_in_place(folder: Path, samples: list[Sample]) -> None:
    """What is served after a step is what was trained: log-probs of the model have changed, and are its cast."""
    trainer, loaded = trainer_on(folder, dtype="bfloat16", algorithm={"epochs": 1})
    pairs = random_pairs(3)
    before = completion_logprobs(loaded.model, pairs, temperature=1.0, token_budget=99)
    trainer.step(samples)
    after = completion_logprobs(loaded.model, pairs, temperature=1.0, token_budget=99)
    assert max(float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True)) > 0.01
    assert trainer.optimiser.matches()

"""What of the model is trained and how: the reference on the shared trunk, activations made anew, frozen layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from services.common.errors import InvalidInput
from services.common.spec.run import RolloutSpec
from services.learner.sample import Sample
from services.learner.trained import checkpoint_activations
from services.learner.training import Trainer
from services.learner.weights import PublishedWeights
from services.models.logprobs import completion_logprobs
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, random_pairs, run_spec, samples_from

SCORES = [1.0, -1.0, 0.5, 2.0, -0.5]
PAIRS = random_pairs(len(SCORES))
LORA = {"lora": {"rank": 4}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", layers=3)


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    return samples_from(loaded_from(folder), PAIRS, SCORES, temperature=0.7)


def trainer_on(folder: Path, optimiser: dict[str, Any], **tables: Any) -> Trainer:
    if "lora" in optimiser:
        pytest.importorskip("peft")
    table = {"learning_rate": 1e-2, **optimiser}
    return Trainer(loaded_from(folder), run_spec(folder, optimiser=table, **tables))


# ------------------------------------------------------------ the reference branch


@pytest.mark.parametrize(
    "optimiser",
    [{}, {"train_embeddings": True}, {"frozen_layers": 2}, LORA],
    ids=["all", "embeddings", "hydra", "lora"],
)
@pytest.mark.parametrize("tokens", [16, 4096])
def test_the_branch_is_the_reference(
    folder: Path, samples: list[Sample], optimiser: dict[str, Any], tokens: int
) -> None:
    """Steps with the learner's own reference are those with the starting model's log-probs from elsewhere, at the
    temperature of the draws; what a sample brings along is not looked at; after a resume the start is still it."""
    tables: dict[str, Any] = {"algorithm": {"epochs": 2}, "sampling": {"temperature": 0.7}}
    optimiser = {**optimiser, "micro_batch_tokens": tokens}
    staged, own = (
        trainer_on(folder, optimiser, rollout={"reference": kind}, **tables) for kind in ("stage", "branch")
    )
    blank = [replace(one, reference_logprobs=np.full_like(one.reference_logprobs, -9.0)) for one in samples]
    assert own.step(blank)["objective/kl"] == pytest.approx(0, abs=1e-5)
    staged.step(samples)
    resumed = trainer_on(folder, optimiser, rollout={"reference": "branch"}, **tables)
    resumed.load_state_dict(copy.deepcopy(own.state_dict()))
    for _ in range(2):
        expected, found, again = staged.step(samples), own.step(blank), resumed.step(blank)
        assert abs(expected["objective/kl"]) > 1e-3
        for name in ("objective/kl", "objective/non_score_reward", "loss/policy_avg", "grad_norm"):
            assert found[name] == pytest.approx(expected[name], abs=1e-4, rel=1e-3), name
            assert again[name] == found[name], name


def test_a_copy_is_made_of_what_is_trained_alone(folder: Path) -> None:
    """The branch shares the frozen layers and the embeddings; under LoRA it shares all."""
    hydra = trainer_on(folder, {"frozen_layers": 2}, rollout={"reference": "branch"})
    assert hydra._branch is not None
    own = {id(one) for one in hydra.model.parameters()}
    copied = [name for name, one in hydra._branch._kept.upper.named_parameters() if id(one) not in own]
    assert copied
    assert all(name.startswith(("layers.0.", "norm.")) for name in copied)  # the upper half's only layer
    lora = trainer_on(folder, LORA, rollout={"reference": "branch"})
    assert lora._branch is not None
    assert all(
        one is two
        for one, two in zip(
            lora._branch._kept.upper.parameters(), lora._split.upper_half.parameters(), strict=True
        )
    )


@pytest.mark.parametrize(
    ("given", "slip"),
    [
        ({"reference": "branch"}, ("policy", "reward")),
        ({"reference": "branch", "slip": ["policy", "reference", "reward/a"]}, ("policy", "reward/a")),
        ({"slip": ["policy", "reference", "reward"]}, ("policy", "reference", "reward")),
        ({}, ("policy", "reference", "reward")),
    ],
)
def test_the_branch_takes_the_stage_out_of_the_slip(given: dict[str, Any], slip: tuple[str, ...]) -> None:
    """Also where a schema filled the slip in."""
    assert RolloutSpec.model_validate(given).slip == slip


def test_a_slip_without_a_reference_is_refused(folder: Path) -> None:
    """Both ways out are named; a branch has its own, and what learns from a file has no slip to go along."""
    slip = {"slip": ["policy", "reward"]}
    with pytest.raises(ValidationError, match=r"add it, or take rollout\.reference = branch"):
        run_spec(folder, rollout=slip)
    assert run_spec(folder, rollout=slip | {"reference": "branch"}).rollout.slip == ("policy", "reward")
    assert run_spec(folder, algorithm={"kind": "dpo"}, rollout=slip).offline


def test_a_weight_of_no_scoring_stage_is_refused() -> None:
    """A misspelt stage would be learnt from at its full weight; what can be weighed is named."""
    rollout: dict[str, Any] = {"slip": ["policy", "reference", "reward/a", "reward/b"]}
    for stage in ("reward/c", "a", "policy"):
        with pytest.raises(
            ValidationError, match=f"{stage} is no scoring stage .* expected reward/a, reward/b"
        ):
            RolloutSpec.model_validate(rollout | {"reward_weights": {"reward/a": 0.5, stage: 0.0}})
    assert RolloutSpec.model_validate(rollout | {"reward_weights": {"reward/a": 0.0}}).reward_weights


# ------------------------------------------------------------ activations


def saved_bytes(step: Callable[[], Any]) -> int:
    """The most bytes of activations that stand at once for backward passes."""
    live, most = 0, 0

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal live, most
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            live += self.size
            most = max(most, live)

        def __del__(self) -> None:
            nonlocal live
            live -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        step()
    return most


@pytest.mark.parametrize(
    "optimiser", [{}, {"frozen_layers": 1}, LORA, {"lora": {"rank": 4, "dropout": 0.3}}], ids=str
)
def test_activations_made_anew_change_no_number(
    folder: Path, samples: list[Sample], optimiser: dict[str, Any]
) -> None:
    """Loss, gradient norm and new weights are the same to float32's rounding, under dropout too, with less kept."""
    found = []
    for anew in (False, True):
        trainer = trainer_on(
            folder,
            # An eps by which Adam does not turn the sign of a rounding into a whole step.
            {**optimiser, "gradient_checkpointing": anew, "eps": 1e-3},
            algorithm={"epochs": 2, "minibatches": 2},
        )
        metrics: dict[str, float] = {}
        most = saved_bytes(lambda trainer=trainer, metrics=metrics: metrics.update(trainer.step(samples)))  # type: ignore[misc]
        found.append((metrics, trainer.serving_weights(), most))
    (kept, weights, more), (anew_metrics, anew_weights, less) = found
    for name in ("loss/policy_avg", "loss/value_avg", "grad_norm", "policy/approxkl_avg"):
        assert anew_metrics[name] == pytest.approx(kept[name], abs=1e-6, rel=1e-5), name
    for name, one in weights.items():
        torch.testing.assert_close(anew_weights[name], one, atol=5e-6, rtol=0, msg=name)
    assert less < 0.7 * more


def test_a_model_that_cannot_is_refused() -> None:
    """One without layers that run again."""
    with pytest.raises(InvalidInput, match="Linear has no layers that can run again"):
        checkpoint_activations(torch.nn.Linear(2, 2))


# ------------------------------------------------------------ frozen layers


def test_frozen_layers_cost_nothing(folder: Path, samples: list[Sample]) -> None:
    """No moments for them, and their tensors are neither hashed nor copied nor sent again: a delta is of the rest."""
    trainer = trainer_on(folder, {"frozen_layers": 2})
    upper = {name for name, one in trainer.model.named_parameters() if one.requires_grad}
    assert all("layers.2." in name or name == "model.norm.weight" for name in upper)
    weights = PublishedWeights(tokenizer_fingerprint="", deltas=False)
    frozen = frozenset(trainer.serving_weights().keys() - upper)
    weights.publish(1, 0, trainer.serving_weights(), frozen=frozen)
    first = weights.newest()
    trainer.step(samples)
    state = trainer.optimiser.state_dict()
    assert len(state["optimiser"]["state"]) == len(state["masters"]) == len(upper) + 2  # and the value head's
    weights.publish(1, 1, trainer.serving_weights(), frozen=frozen)
    second = weights.newest()
    before, after = first.manifest.by_name(), second.manifest.by_name()
    assert {name for name in after if after[name] != before[name]} == upper
    assert all(second.tensors[name] is first.tensors[name] for name in frozen)
    # What is published is what the model computes with.
    plain = loaded_from(folder).model
    plain.load_state_dict(dict(second.tensors), strict=False)
    expected = completion_logprobs(trainer.model, PAIRS, temperature=1.0, token_budget=4096)
    for one, two in zip(
        completion_logprobs(plain, PAIRS, temperature=1.0, token_budget=4096), expected, strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-6, rtol=0)

"""NLPO in the trainer: log-probs within the rollouts' masks, and the mask model's age."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.common.errors import Corrupted
from services.common.spec.library import NlpoSpec
from services.common.spec.run import RunSpec
from services.learner import masked_policy
from services.learner.masked_policy import MaskedPolicy, masked_logprobs
from services.learner.sample import Sample
from services.learner.training import Trainer
from services.models.action_masks import packed
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, random_pairs, run_spec, samples_from

VOCABULARY = 263
NLPO: dict[str, Any] = {"kind": "nlpo", "epochs": 1, "minibatches": 1, "refresh_every": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", layers=2)


def bits(ids: Any, *, least: int) -> Any:
    """Tokens from `least` on, and each token itself."""
    allowed = np.tile(np.arange(VOCABULARY) >= least, (len(ids), 1))
    allowed[np.arange(len(ids)), ids] = True
    return np.packbits(allowed, axis=1, bitorder="little")


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    found = samples_from(loaded_from(folder), random_pairs(4), [1.0, -1.0, 0.5, 2.0], noise=0.3)
    return [replace(one, action_masks=bits(one.completion_ids, least=131)) for one in found]


def trainer_on(folder: Path, **algorithm: Any) -> Trainer:
    tables = {"algorithm": {**NLPO, **algorithm}, "optimiser": {"learning_rate": 1e-2}}
    return Trainer(loaded_from(folder), run_spec(folder, **tables))


@pytest.mark.parametrize("temperature", [1.0, 0.7, "each"])
def test_log_probs_and_gradients_are_those_of_the_formula(
    monkeypatch: pytest.MonkeyPatch, temperature: float | str
) -> None:
    """Chunk by chunk: masked log-prob, raw log-prob and masked entropy as written out over the whole vocabulary."""
    monkeypatch.setattr(masked_policy, "CHUNK_ROWS", 3)
    torch.manual_seed(0)
    states, head = (torch.randn(size, 4, dtype=torch.float64) for size in (7, 11))
    targets, allowed = torch.randint(11, (7,)), torch.rand(7, 11) < 0.4
    allowed[torch.arange(7), targets] = True
    divided_by = torch.rand(7) + 0.5 if temperature == "each" else temperature
    weights = torch.randn(3, 7)

    def direct(states: torch.Tensor, head: torch.Tensor) -> tuple[torch.Tensor, ...]:
        by = divided_by[:, None] if isinstance(divided_by, torch.Tensor) else divided_by
        logits = (states @ head.T).float() / by
        likely = torch.where(allowed, logits.exp(), 0)
        likely = likely / likely.sum(-1, keepdim=True)
        spread = -torch.where(allowed, likely * likely.clamp(min=1e-30).log(), 0).sum(-1)
        rows = torch.arange(7)
        return likely[rows, targets].log(), logits.softmax(-1)[rows, targets].log(), spread

    results = []
    for compute in (direct, lambda one, two: masked_logprobs(one, two, targets, divided_by, packed(allowed))):
        one, two = (tensor.clone().requires_grad_() for tensor in (states, head))
        values = compute(one, two)
        sum((value * weight).sum() for value, weight in zip(values, weights, strict=True)).backward()
        results.append([*values, one.grad, two.grad])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_step_tells_how_much_is_masked(folder: Path, samples: list[Sample]) -> None:
    """131 of 263 tokens are masked, or 130 where the token drawn is one of those; the mean over tokens."""
    drawn = np.concatenate([one.completion_ids for one in samples])
    expected = np.mean(np.where(drawn < 131, 130, 131)) / VOCABULARY
    assert trainer_on(folder).step(samples)["policy/masked_share"] == pytest.approx(expected)


def test_the_kl_is_of_the_policy_before_the_mask(folder: Path, samples: list[Sample]) -> None:
    """Masks change what the ratio is of, and not the KL to the reference."""
    wide = [replace(one, action_masks=bits(one.completion_ids, least=0)) for one in samples]
    masked, open_ = (trainer_on(folder).step(batch) for batch in (samples, wide))
    for name in ("objective/kl", "objective/non_score_reward"):
        assert masked[name] == pytest.approx(open_[name], abs=1e-5)
    assert masked["objective/entropy"] < open_["objective/entropy"]
    assert open_["policy/masked_share"] == 0


def test_the_mask_model_is_as_old_as_the_settings_say(folder: Path, samples: list[Sample]) -> None:
    """refresh_every = 2, an update a step: the start for two steps, then the policy of step 2 for two more."""
    trainer = trainer_on(folder)
    name = next(name for name in trainer.serving_weights() if name.endswith("down_proj.weight"))
    policy, mask, versions = [], [], []
    for _ in range(5):
        weights = trainer.serving_weights()
        policy.append(weights[name].clone())
        mask.append(weights[f"mask_model/{name}"].clone())
        versions.append(trainer.step(samples)["policy/mask_version"])
    assert versions == [0, 0, 1, 1, 2]
    for at, of in enumerate((0, 0, 2, 2, 4)):
        assert torch.equal(mask[at], policy[of])
    assert not torch.equal(policy[0], policy[2])


def test_several_updates_a_step_refresh_at_its_end(folder: Path, samples: list[Sample]) -> None:
    """Four updates a step and refresh_every = 6: after the second step, that is 8 updates, and after the third, 12."""
    trainer = trainer_on(folder, epochs=2, minibatches=2, refresh_every=6)
    versions = [trainer.step(samples)["policy/mask_version"] for _ in range(4)]
    assert versions == [0, 0, 1, 2]


@pytest.mark.parametrize("masks", [None, np.zeros((3, 33), np.uint8)])
def test_rollouts_without_their_masks_are_refused(folder: Path, samples: list[Sample], masks: Any) -> None:
    """None, or masks of another length or vocabulary: one line."""
    with pytest.raises(Corrupted, match=r"action masks: expected \[\d+, 33\]"):
        trainer_on(folder).step([replace(samples[0], action_masks=masks), *samples[1:]])


def test_what_would_not_fit_nlpo_is_refused(folder: Path) -> None:
    """A penalty in the loss, and a nucleus or top-k beside the mask."""
    with pytest.raises(ValueError, match=r"kl\.placement stays reward"):
        NlpoSpec.model_validate({"kl": {"placement": "loss"}})
    for sampling in ({"top_p": 0.9}, {"top_k": 5}, {"top_p_end": 0.5}):
        with pytest.raises(ValueError, match=r"sampling\.top_p stays 1 and top_k 0"):
            run_spec(folder, algorithm=NLPO, sampling=sampling)


def test_a_run_says_what_its_policy_draws_with(folder: Path) -> None:
    """NLPO's mask, ILQL's values, otherwise nothing."""

    def decoding(**algorithm: Any) -> dict[str, Any]:
        spec: RunSpec = run_spec(folder, algorithm=algorithm)
        return spec.decoding.model_dump(exclude_none=True)

    assert decoding(kind="nlpo", top_p=0.7, min_tokens=2) == {"mask": {"top_p": 0.7, "min_tokens": 2}}
    assert decoding(kind="ilql", beta=4, top_k=3) == {"values": {"beta": 4, "top_k": 3}}
    assert decoding(kind="grpo") == {}
    assert MaskedPolicy(loaded_from(folder).model, NlpoSpec()).weights().keys() >= {
        "mask_model/model.norm.weight"
    }

"""A learner's adapter and a policy over real loopback gRPC: what is served has the log-probs of what is trained."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.common.errors import Corrupted, Mismatch
from services.common.server import serving
from services.common.spec.service import ServiceSpec
from services.learner.training import Trainer
from services.learner.weights import PublishedWeights
from services.models.loading import LoadedModel, serving_state
from services.models.logprobs import completion_logprobs
from services.models.low_rank import is_factor
from services.models.manifest import Manifest, Version, entries_of, whole_digest
from services.policy.engines.base import Request, Sampling
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.generation import Policy, Update
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, random_pairs, run_spec, samples_from
from tests.integration.test_weights import WeightsOnly, arrival, reading

pytest.importorskip("peft")

LAYERS = 2 * 7
# bfloat16: a merged weight is rounded once more than the learner's base beside its float32 factors.
BOUNDS = {"float32": 1e-4, "bfloat16": 0.25}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny")


def trainer_on(folder: Path, dtype: str, **lora: Any) -> tuple[Trainer, LoadedModel]:
    loaded = loaded_from(folder, dtype)
    optimiser = {"learning_rate": 1e-2, "lora": {"rank": 4, **lora}}
    return Trainer(loaded, run_spec(folder, optimiser=optimiser, algorithm={"epochs": 2})), loaded


def policy_on(folder: Path, dtype: str = "float32") -> Policy:
    loaded = loaded_from(folder, dtype)
    return Policy(TransformersEngine(loaded), loaded.tokenizer)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("lora", [{}, {"dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("deliver", ["merged", "adapter"])
async def test_what_is_served_is_what_is_trained(
    folder: Path, deliver: str, lora: dict[str, Any], dtype: str
) -> None:
    """Merged or as an adapter: after each of two steps the policy's log-probs of what it draws are those of the
    learner's model, its weights are the merge, bit for bit, and it claims the digest that was published. Delivered
    alone, only factors travel."""
    trainer, learning = trainer_on(folder, dtype, deliver=deliver, **lora)
    policy = policy_on(folder, dtype)
    assert trainer.adapter is not None
    weights = PublishedWeights(tokenizer_fingerprint=learning.facts.tokenizer_fingerprint)
    version, _ = weights.publish(1, 0, trainer.serving_weights())
    learner = WeightsOnly(weights)
    batch = samples_from(loaded_from(folder, dtype), random_pairs(4), [1.0, -1.0, 2.0, 0.5])
    async with serving(ServiceSpec(), learner) as where, reading(policy, where.grpc):
        await arrival(policy, version)
        for step in (1, 2):
            trainer.step(batch)
            fixed = trainer.adapter.fixed()
            version, _ = weights.publish(1, step, trainer.serving_weights(), frozen=fixed)
            learner.servicer.announce()
            await arrival(policy, version)
            assert policy.version == version
            assert whole_digest(entries_of(policy.engine.weights())) == version.digest
            engine = policy.engine
            assert isinstance(engine, TransformersEngine)
            computed = serving_state(engine._model)
            assert all(torch.equal(one, computed[name]) for name, one in trainer.adapter.merged().items())
            check_logprobs(policy, learning, BOUNDS[dtype])
    factors = LAYERS * (3 if lora else 2)
    names = {name for fetch in learner.fetched for name in fetch}
    assert all(is_factor(name) for name in names) is (deliver == "adapter")
    assert len(names) == (factors if deliver == "adapter" else LAYERS)


def check_logprobs(policy: Policy, learning: LoadedModel, bound: float) -> None:
    requests = [
        Request(prompt_ids=prompt, sampling=Sampling(max_new_tokens=8, seed=7), index=at)
        for at, (prompt, _) in enumerate(random_pairs(3, seed=2))
    ]
    drafts = policy.generate(requests, threading.Event())
    pairs = [(request.prompt_ids, draft.token_ids) for request, draft in zip(requests, drafts, strict=True)]
    expected = completion_logprobs(learning.model, pairs, temperature=1.0, token_budget=999)
    for draft, own in zip(drafts, expected, strict=True):
        np.testing.assert_allclose(draft.raw_logprobs, own, atol=bound, rtol=0)


def delivered(folder: Path) -> tuple[Manifest, dict[str, torch.Tensor]]:
    """A first version that is delivered as an adapter."""
    state = trainer_on(folder, "float32", deliver="adapter")[0].serving_weights()
    entries = entries_of(state)
    return Manifest(Version(1, 0, whole_digest(entries)), entries), state


def test_an_engine_that_merges_nothing_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a byte is fetched, with what to set instead."""
    manifest, _ = delivered(folder)
    policy = policy_on(folder)
    policy.check_manifest(manifest)
    able = policy.engine.capabilities - {"adapters"}
    monkeypatch.setattr(TransformersEngine, "capabilities", able)
    with pytest.raises(
        Mismatch, match=r"the transformers engine does not merge: optimiser.lora.deliver = merged"
    ):
        policy.check_manifest(manifest)


def test_half_an_adapter_is_refused(folder: Path) -> None:
    """By the manifest, and by the engine: nothing is written."""
    manifest, state = delivered(folder)
    name = next(name for name in state if name.endswith("lora_B.weight"))
    policy = policy_on(folder)
    half = Manifest(manifest.version, tuple(one for one in manifest.tensors if one.name != name))
    with pytest.raises(Mismatch, match="half of an adapter, B is missing"):
        policy.check_manifest(half)
    before = {name: one.clone() for name, one in policy.engine.weights().items()}
    with pytest.raises(Mismatch, match="half of an adapter, B is missing"):
        policy.engine.load_weights({key: one for key, one in state.items() if key != name})
    after = policy.engine.weights()
    assert after.keys() == before.keys()
    assert all(torch.equal(one, before[key]) for key, one in after.items())


def test_a_merge_that_is_not_what_is_served_generates_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is read back after the merge; what does not hold is told, under another digest, and ends generation."""
    manifest, state = delivered(folder)
    policy = policy_on(folder)
    told: list[Version] = []
    policy.on_other_weights = told.append
    monkeypatch.setattr(torch.Tensor, "copy_", lambda own, *_: own)
    name = next(name for name in state if name.endswith("lora_B.weight"))
    state[name] = torch.ones_like(state[name])
    policy.offer(Update(manifest, state))
    for _ in range(2):
        with pytest.raises(Corrupted, match="does not have the merge of its base and the adapter"):
            policy.generate([], threading.Event())
    assert [one.step for one in told] == [0]
    assert told[0].digest != manifest.version.digest

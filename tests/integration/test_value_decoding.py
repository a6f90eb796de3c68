"""ILQL's decoding in the policy service, over real gRPC: from a trained folder, and following a learner."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from orchestrator.local.in_process import run_in_process
from services.common.arrays import to_numpy
from services.common.errors import ConfigError, InvalidInput, Mismatch
from services.common.server import serving
from services.common.spec.library import IlqlSpec
from services.common.tasks.randomwalks import END_ID, VOCABULARY, random_walks
from services.learner.algorithms.ilql import IlqlHeads, decoding_logits
from services.learner.application import LearnerApplication
from services.learner.config import LearnerConfig
from services.models.loading import LoadedModel
from services.policy.application import PolicyApplication
from services.policy.config import PolicyConfig
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, model_spec, run_spec
from tests.fakes.walk_models import make_walker, write_walks
from trimtab.clients.policy import AsyncPolicyClient

NEW_TOKENS = 9
PROMPTS = [[start] for start in random_walks().starts]
ALGORITHM: dict[str, Any] = {"kind": "ilql", "tau": 0.8, "alpha": 0.3, "sync_every": 1}


def ilql_run(folder: Path, walks: Path, *, steps: int) -> Any:
    tables = {"optimiser": {"learning_rate": 3e-3}, "rollout": {"batch_groups": 50}}
    return run_spec(
        folder, algorithm=ALGORITHM, data={"prompts": str(walks)}, steps=steps, name="walks", **tables
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_walker(tmp_path_factory.mktemp("walker") / "start")


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_walks(tmp_path_factory.mktemp("data") / "walks.jsonl")


@pytest.fixture(scope="module")
def trained(start: Path, walks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that an ILQL run leaves: the model, and the heads beside it."""
    out = tmp_path_factory.mktemp("run")
    assert run_in_process(ilql_run(start, walks, steps=60), out) == 0
    return out / "model"


def config(folder: Path, **tables: Any) -> PolicyConfig:
    return PolicyConfig.model_validate({"model": model_spec(folder), "max_rows": 8, **tables})


async def completions(settings: PolicyConfig, *, temperature: float, seed: int = 5) -> list[Any]:
    """One for each start, from a service of its own."""
    async with (
        serving(settings, PolicyApplication(settings)) as where,
        AsyncPolicyClient(where.grpc) as client,
    ):
        results = await client.generate(
            PROMPTS, max_new_tokens=NEW_TOKENS, temperature=temperature, seed=seed
        )
    return [result.completions[0] for result in results]


def tokens(made: list[Any]) -> list[list[int]]:
    return [to_numpy(one.token_ids).tolist() for one in made]


def heads_of(folder: Path) -> IlqlHeads:
    heads = IlqlHeads(32, len(VOCABULARY))
    heads.load_state_dict(load_file(folder / "ilql_heads.safetensors"))
    return heads


def decided(
    loaded: LoadedModel, heads: IlqlHeads, ids: list[int], spec: IlqlSpec, temperature: float = 1.0
) -> torch.Tensor:
    """The pure decoding's logits for the next token, [vocabulary], by one pass over all that stands there."""
    with torch.inference_mode():
        row = torch.tensor(ids)[None]
        state = loaded.model.base_model(input_ids=row).last_hidden_state[0, -1]
        targets = tuple(head(state) for head in heads.target_qs)
        logits = loaded.model(input_ids=row).logits[0, -1]
        return decoding_logits(logits, targets, heads.value(state)[0], spec, temperature=temperature)


@pytest.mark.parametrize(("beta", "top_k"), [(1.0, 10), (100.0, 10), (4.0, 0)])
async def test_greedy_is_the_pure_decoding(trained: Path, beta: float, top_k: int) -> None:
    """From every start the service decodes the very tokens that ilql.py's formula decides on, one after the other."""
    loaded, heads, expected = loaded_from(trained), heads_of(trained), []
    for prompt in PROMPTS:
        ids = list(prompt)
        while len(ids) < 1 + NEW_TOKENS and ids[-1] != END_ID:
            ids.append(int(decided(loaded, heads, ids, IlqlSpec(beta=beta, top_k=top_k)).argmax()))
        expected.append(ids[1:])
    values = {"values": {"beta": beta, "top_k": top_k}}
    assert tokens(await completions(config(trained, decoding=values), temperature=0)) == expected


async def test_the_values_decide_something(trained: Path) -> None:
    """At beta 100 other walks come out than the policy's own, and better ones."""
    task = random_walks()

    def quality(walked: list[list[int]]) -> float:
        whole = [[*prompt, *walk] for prompt, walk in zip(PROMPTS, walked, strict=True)]
        return float(np.mean([task.optimality(walk) for walk in whole]))

    plain = tokens(await completions(config(trained), temperature=0))
    guided = tokens(
        await completions(config(trained, decoding={"values": {"beta": 100.0, "top_k": 10}}), temperature=0)
    )
    assert guided != plain
    assert quality(guided) > quality(plain)


async def test_beta_0_is_plain_sampling(trained: Path) -> None:
    """The same seed draws the same tokens with the same log-probs as without the heads."""
    plain = await completions(config(trained), temperature=0.8)
    guided = await completions(
        config(trained, decoding={"values": {"beta": 0.0, "top_k": 0}}), temperature=0.8
    )
    assert tokens(guided) == tokens(plain)
    for one, other in zip(guided, plain, strict=True):
        for name in ("raw_logprobs", "sampled_logprobs"):
            np.testing.assert_allclose(
                to_numpy(getattr(one, name)), to_numpy(getattr(other, name)), atol=2e-5
            )


async def test_log_probs_are_raw_and_as_sampled(trained: Path) -> None:
    """Raw: the policy's own. As sampled: of the guided distribution at the temperature, its top k alone."""
    spec = IlqlSpec(beta=2.0, top_k=5)
    settings = config(trained, decoding={"values": {"beta": 2.0, "top_k": 5}})
    loaded, heads = loaded_from(trained), heads_of(trained)
    for prompt, one in zip(PROMPTS, await completions(settings, temperature=0.7), strict=True):
        ids = to_numpy(one.token_ids).tolist()
        for at, token in enumerate(ids):
            before = [*prompt, *ids[:at]]
            guided = decided(loaded, heads, before, spec, 0.7).log_softmax(-1)
            with torch.inference_mode():
                own = loaded.model(input_ids=torch.tensor(before)[None]).logits[0, -1].log_softmax(-1)
            assert to_numpy(one.sampled_logprobs)[at] == pytest.approx(float(guided[token]), abs=1e-4)
            assert to_numpy(one.raw_logprobs)[at] == pytest.approx(float(own[token]), abs=1e-4)


async def test_a_policy_follows_an_ilql_learner(start: Path, walks: Path, tmp_path: Path) -> None:
    """Heads come with the weights: beginning without any, it decodes at last as the run's folder does."""
    learner = LearnerConfig(run=ilql_run(start, walks, steps=3), out=tmp_path)
    decoding = {"values": {"beta": 100.0, "top_k": 10}}
    async with serving(learner, LearnerApplication(learner)) as where:
        settings = config(start, decoding=decoding, weights={"address": where.grpc, "retry_seconds": 0.1})
        async with (
            serving(settings, PolicyApplication(settings)) as at,
            AsyncPolicyClient(at.grpc) as client,
        ):
            async with asyncio.timeout(30):
                while (await client.info()).model.weights_version.step < 3:
                    # Weights are swapped in before a batch.
                    await client.generate([[1]], max_new_tokens=1)
                    await asyncio.sleep(0.02)
            results = await client.generate(PROMPTS, max_new_tokens=NEW_TOKENS, temperature=0)
            while not (tmp_path / "model" / "ilql_heads.safetensors").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    followed = [to_numpy(result.completions[0].token_ids).tolist() for result in results]
    assert followed == tokens(await completions(config(tmp_path / "model", decoding=decoding), temperature=0))


async def test_a_policy_without_values_refuses_weights_that_have_them(
    start: Path, walks: Path, tmp_path: Path
) -> None:
    """One line says what the learner publishes and which table takes it; nothing is served under it."""
    learner = LearnerConfig(run=ilql_run(start, walks, steps=1), out=tmp_path)
    async with serving(learner, LearnerApplication(learner)) as where:
        settings = config(start, weights={"address": where.grpc, "retry_seconds": 0.1})
        application = PolicyApplication(settings)
        async with serving(settings, application):
            with pytest.raises(
                Mismatch, match=r"q_heads, which this policy does not decode with: set decoding\.values"
            ):
                await asyncio.wait_for(application.wait(), 30)


async def test_heads_that_nobody_has_are_refused_at_start(start: Path, trained: Path, tmp_path: Path) -> None:
    """Without a file and without a learner, or with heads of another model: one line, before anything is served."""
    values = {"values": {"beta": 1.0}}
    with pytest.raises(ConfigError, match="and no learner is followed"):
        await completions(config(start, decoding=values), temperature=0)
    other = make_tiny_causal(tmp_path / "other")
    (other / "ilql_heads.safetensors").write_bytes((trained / "ilql_heads.safetensors").read_bytes())
    with pytest.raises(InvalidInput, match="these are no value heads of this model"):
        await completions(config(other, decoding=values), temperature=0)


@pytest.mark.parametrize("kind", ["vllm", "tgi", "openai"])
@pytest.mark.parametrize("table", ["values", "mask"])
def test_engines_elsewhere_cannot(start: Path, kind: str, table: str) -> None:
    """Refused by the configuration, before a server is started or asked."""
    with pytest.raises(ValueError, match=rf"decoding\.{table} needs the transformers engine: {kind} cannot"):
        config(start, decoding={table: {}}, engine={"kind": kind, "url": "http://127.0.0.1:1"})

"""The transformers engine on a tiny random T5 in float32."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.common.errors import ConfigError, InvalidInput
from services.models.loading import LoadedModel
from services.models.logprobs import completion_logprobs
from services.policy.config import PolicyConfig
from services.policy.engines.base import Draft, Request, Sampling
from services.policy.engines.choice import open_engine
from services.policy.engines.transformers_engine import TransformersEngine
from tests.fakes.tiny_models import make_tiny_t5
from tests.fakes.tiny_runs import loaded_from, random_pairs

PROMPTS = [prompt for prompt, _ in random_pairs(5, seed=2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_t5(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def loaded(folder: Path) -> LoadedModel:
    return loaded_from(folder)


def requests(*, each: int = 2, **sampling: Any) -> list[Request]:
    """`each` completions of every prompt."""
    drawn = Sampling(**{"max_new_tokens": 12, "seed": 5, **sampling})
    return [Request(prompt_ids=prompt, sampling=drawn, index=at) for prompt in PROMPTS for at in range(each)]


def run(engine: TransformersEngine, wanted: list[Request]) -> list[Draft]:
    return engine.generate(wanted, threading.Event())


@pytest.mark.parametrize("rows", [3, 64])
def test_greedy_is_transformers_generate(loaded: LoadedModel, rows: int) -> None:
    """Token for token, whatever shares the batch and whenever a row joins."""
    loaded.model.generation_config.eos_token_id = list(range(0, 263, 7))
    drafts = run(TransformersEngine(loaded, max_rows=rows), requests(each=1, temperature=0.0))
    assert len({len(draft.token_ids) for draft in drafts}) > 1
    for prompt, draft in zip(PROMPTS, drafts, strict=True):
        whole = loaded.model.generate(
            torch.tensor(prompt, dtype=torch.long)[None], max_new_tokens=12, do_sample=False
        )
        assert draft.token_ids.tolist() == whole[0, 1:].tolist()


@pytest.mark.parametrize("rows", [3, 64])
def test_raw_log_probs_are_a_direct_pass(loaded: LoadedModel, rows: int) -> None:
    """To 1e-5 at every position, of rows at unlike lengths; the same tokens however many rows there are."""
    loaded.model.generation_config.eos_token_id = list(range(0, 263, 7))
    wanted = requests()
    drafts = run(TransformersEngine(loaded, max_rows=rows), wanted)
    pairs = [(one.prompt_ids, draft.token_ids) for one, draft in zip(wanted, drafts, strict=True)]
    direct = completion_logprobs(loaded.model, pairs, temperature=1.0, token_budget=4096)
    for draft, expected in zip(drafts, direct, strict=True):
        np.testing.assert_allclose(draft.raw_logprobs, expected, atol=1e-5, rtol=0)
    alone = run(TransformersEngine(loaded, max_rows=1), wanted[-1:])[0]
    assert drafts[-1].token_ids.tolist() == alone.token_ids.tolist()


def test_a_draft_is_gone_on_with(loaded: LoadedModel) -> None:
    """From any token on the very draws of the uninterrupted completion, beside rows that begin."""
    engine, wanted = TransformersEngine(loaded), requests()
    whole = run(engine, wanted)
    cut = [
        replace(
            one,
            draft=Draft(
                token_ids=draft.token_ids[:at],
                raw_logprobs=draft.raw_logprobs[:at],
                sampled_logprobs=draft.sampled_logprobs[:at],
            ),
        )
        for at, (one, draft) in enumerate(zip(wanted, whole, strict=True))
    ]
    for one, other in zip(run(engine, cut), whole, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        np.testing.assert_allclose(one.raw_logprobs, other.raw_logprobs, atol=1e-5, rtol=0)


def test_a_prompt_is_encoded_once(loaded: LoadedModel) -> None:
    """Four completions of each prompt, of which three rows fit at a time: the encoder reads every prompt once."""
    engine, seen = TransformersEngine(loaded, max_rows=3), list[int]()
    loaded.model.encoder.register_forward_pre_hook(
        lambda _, __, options: seen.append(len(options["inputs_embeds"])), with_kwargs=True
    )
    run(engine, requests(each=4))
    assert sum(seen) == len(PROMPTS)


def test_new_weights_are_read_with_the_next_call(loaded: LoadedModel) -> None:
    """After a swap of the tied tensor both stacks and the head are new: log-probs are a direct pass' again."""
    engine, wanted = TransformersEngine(loaded), requests()
    run(engine, wanted)
    engine.load_weights({"shared.weight": 1.5 * engine.weights()["shared.weight"]})
    drafts = run(engine, wanted)
    pairs = [(one.prompt_ids, draft.token_ids) for one, draft in zip(wanted, drafts, strict=True)]
    direct = completion_logprobs(loaded.model, pairs, temperature=1.0, token_budget=4096)
    for draft, expected in zip(drafts, direct, strict=True):
        np.testing.assert_allclose(draft.raw_logprobs, expected, atol=1e-5, rtol=0)


def test_a_model_that_computes_something_else_is_refused(loaded: LoadedModel) -> None:
    """A hook that shifts a layer's output is seen when the engine is made."""
    loaded.model.decoder.block[0].register_forward_hook(lambda _, __, out: (out[0] + 1, *out[1:]))
    with pytest.raises(InvalidInput, match="computes more than its parts show"):
        TransformersEngine(loaded)


@pytest.mark.parametrize(
    "engine",
    [
        {"kind": "vllm", "url": "http://127.0.0.1:9"},
        {"kind": "vllm", "command": ["no-such-program"]},
        {"kind": "tgi", "url": "http://127.0.0.1:9"},
        {"kind": "openai", "url": "http://127.0.0.1:9"},
    ],
    ids=["vllm", "vllm-started", "tgi", "openai"],
)
def test_engines_that_cannot_refuse_at_start(folder: Path, engine: dict[str, Any]) -> None:
    """In one line, before anything is started or asked."""
    config = PolicyConfig.model_validate({"model": {"path": str(folder)}, "engine": engine})
    with pytest.raises(ConfigError, match=f"engine.kind = {engine['kind']}: .* is an encoder-decoder"):
        open_engine(config)

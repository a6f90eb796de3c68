"""Models whose layers see a window: rows of unlike lengths, past the window, decoded as by a direct pass."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPTNeoConfig,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from services.common.errors import InvalidInput
from services.models.facts import language_config
from services.models.loading import LoadedModel
from services.policy.engines.base import Draft, Request, Sampling
from services.policy.engines.kv_cache import KeyValueCache
from services.policy.engines.runners import PlainRunner, runner_for
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.engines.windows import Windows
from tests.fakes.tiny_models import tiny_tokenizer
from tests.fakes.tiny_runs import loaded_from

WINDOW, NEW = 6, 9
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "sliding_window": WINDOW,
}
GEMMA3: dict[str, Any] = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
}


def gemma3_that_sees(**sizes: Any) -> Any:
    """One whose language is a part of it."""
    eye = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return Gemma3Config(
        text_config=Gemma3TextConfig(**sizes),
        vision_config={**eye, "image_size": 4, "patch_size": 2},
        mm_tokens_per_image=1,
    )


MAKE: dict[str, Any] = {
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, GEMMA3),
    "gemma3 that sees": (Gemma3ForConditionalGeneration, gemma3_that_sees, GEMMA3),
    "mistral": (MistralForCausalLM, MistralConfig, {"num_hidden_layers": 2}),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"num_hidden_layers": 2, "use_sliding_window": True, "max_window_layers": 1},
    ),
}
# Shorter than the window, as long, and several times as long: they share the batch.
PROMPTS = [list(range(7, 7 + length)) for length in (1, WINDOW, 23, 10)]


@pytest.fixture(scope="module", params=MAKE)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A random model of the kind, loaded as the service does."""
    return made(tmp_path_factory.mktemp("windows"), *MAKE[request.param])


def made(folder: Path, kind: Any, config: Any, more: dict[str, Any]) -> LoadedModel:
    tokenizer = tiny_tokenizer()
    ends = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        # One more than there are: Qwen2's tokenizer brings an end of its own.
        model = kind(config(vocab_size=len(tokenizer) + 1, **{**SIZES, **more, **ends}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return loaded_from(folder)


def drafts_of(engine: TransformersEngine, sampling: Sampling) -> list[Draft]:
    requests = [
        Request(prompt_ids=np.array(prompt, np.int32), sampling=sampling, index=at)
        for at, prompt in enumerate(PROMPTS)
    ]
    return engine.generate(requests, threading.Event())


def direct(loaded: LoadedModel, prompt: list[int], draft: Draft) -> torch.Tensor:
    """Log-softmax before each token, by one pass of the model itself over the whole, [length, vocabulary]."""
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([[*prompt, *draft.token_ids]]), use_cache=False).logits
    return logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_past_the_window_as_by_a_direct_pass(loaded: LoadedModel, rows: int) -> None:
    """Log-probs of every token, for prompts on both sides of the window and completions that go past it."""
    assert isinstance(runner_for(loaded.model), PlainRunner)
    sampling = Sampling(max_new_tokens=NEW, min_new_tokens=NEW, seed=4)
    for prompt, draft in zip(
        PROMPTS, drafts_of(TransformersEngine(loaded, max_rows=rows), sampling), strict=True
    ):
        assert len(draft.token_ids) == NEW
        ids = torch.tensor(draft.token_ids, dtype=torch.long)
        expected = direct(loaded, prompt, draft)[torch.arange(NEW), ids]
        np.testing.assert_allclose(draft.raw_logprobs, expected, atol=2e-5)


def test_the_window_matters_here(loaded: LoadedModel) -> None:
    """Without a window the same weights say something else: the test above could fail."""
    sampling = Sampling(max_new_tokens=NEW, min_new_tokens=NEW, seed=4)
    draft = drafts_of(TransformersEngine(loaded), sampling)[2]
    windowed = direct(loaded, PROMPTS[2], draft)
    config = language_config(loaded.model.config)
    config.sliding_window = 60
    try:
        assert not torch.allclose(direct(loaded, PROMPTS[2], draft), windowed, atol=1e-2)
    finally:
        config.sliding_window = WINDOW


def test_a_window_is_counted_from_each_rows_own_end() -> None:
    """Rows of 3, 7 and 5 tokens after a step, window 4: the last four of each, and none behind its end."""
    cache = KeyValueCache(layers=1, heads=1, width=2, dtype=torch.float32, device=torch.device("cpu"))
    cache.reserve(3, 8)
    cache.add([2, 6, 4], [1, 1, 1])
    cache.extend()
    assert (cache.seen_within(4)[:, 0, 0] == 0).int().tolist() == [
        [1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 0, 0],
    ]
    assert torch.equal(cache.seen_within(0)[:, 0, 0] == 0, cache.seen().bool())


def test_the_cache_is_as_large_as_its_largest_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many short rows, then few long ones: never many long ones; and the old memory is gone before the new is made."""
    cache = KeyValueCache(layers=1, heads=1, width=2, dtype=torch.float32, device=torch.device("cpu"))
    for rows, columns in ((8, 2), (1, 16), (2, 8)):
        cache.reserve(rows, columns)
        assert cache._buffer.untyped_storage().nbytes() == 4 * 16 * 4
        cache.add([columns - 1] * rows, [1] * rows)
        assert cache.extend().tolist() == [columns - 1] * rows
    zeros, old, held = torch.zeros, weakref.ref(cache._buffer), list[bool]()

    def noted(*shape: Any, **options: Any) -> torch.Tensor:
        held.append(old() is not None)
        return zeros(*shape, **options)

    monkeypatch.setattr(torch, "zeros", noted)
    cache.reserve(3, 9)
    assert cache._buffer.untyped_storage().nbytes() == 4 * 27 * 4
    assert held[-2:] == [False, False]


def test_other_kinds_of_layers_are_refused() -> None:
    """What sees neither everything nor a window is not decoded wrongly."""
    model: Any = SimpleNamespace(config=SimpleNamespace(sliding_window=4, layer_types=["chunked_attention"]))
    with pytest.raises(InvalidInput, match="layers of chunked_attention are not supported"):
        Windows(model)


def test_layers_of_local_attention_are_refused() -> None:
    """GPT-Neo's make windows of their own, of the cache's columns; those that see everything are decoded."""
    for kinds, sound in ((["global", "local"], False), (["global", "global"], True)):
        model: Any = SimpleNamespace(config=GPTNeoConfig(num_layers=2, attention_types=[[kinds, 1]]))
        if sound:
            Windows(model)
            continue
        with pytest.raises(InvalidInput, match="layers of local attention are not supported"):
            Windows(model)


def test_longrope_is_decoded_up_to_its_other_factors(tmp_path: Path) -> None:
    """A completion ends where its tokens in the cache would have to be turned anew; until then it is a direct pass'."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [9.0] * 4}
    more = {"num_hidden_layers": 2, "original_max_position_embeddings": 24, "rope_parameters": rope}
    phi = made(tmp_path, Phi3ForCausalLM, Phi3Config, {**more, "sliding_window": None})
    assert phi.facts.context_length == 24
    sampling = Sampling(max_new_tokens=40, min_new_tokens=40, seed=4)
    for prompt, draft in zip(PROMPTS, drafts_of(TransformersEngine(phi), sampling), strict=True):
        assert (len(prompt) + len(draft.token_ids), draft.finish) == (24, "length")
        at = torch.arange(len(draft.token_ids))
        expected = direct(phi, prompt, draft)[at, torch.tensor(draft.token_ids, dtype=torch.long)]
        np.testing.assert_allclose(draft.raw_logprobs, expected, atol=2e-5)

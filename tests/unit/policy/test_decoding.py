"""The default engine bounded by a mask model: what it draws, what it notes, and whose weights it takes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.common.errors import InvalidInput
from services.common.spec.decoding import DecodingSpec
from services.models.action_masks import nucleus, packed, unpacked
from services.models.loading import LoadedModel
from services.policy.engines.base import Draft, Request, Sampling
from services.policy.engines.decoding import decoding_of
from services.policy.engines.transformers_engine import TransformersEngine
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_gpt2
from tests.fakes.tiny_runs import loaded_from

PROMPTS = [[1, 2, 3], [7], [9, 9, 9, 9, 8], [40, 41]]
SAMPLING = Sampling(temperature=0.9, max_new_tokens=10, seed=3)


@pytest.fixture(scope="module", params=[make_tiny_causal, make_tiny_gpt2], ids=["fused", "plain"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make: Callable[[Path], Path] = request.param
    return make(tmp_path_factory.mktemp("models") / "tiny")


def engine_on(loaded: LoadedModel, *, top_p: float, min_tokens: int, rows: int = 3) -> TransformersEngine:
    spec = DecodingSpec.model_validate({"mask": {"top_p": top_p, "min_tokens": min_tokens}})
    return TransformersEngine(loaded, max_rows=rows, decoding=decoding_of(loaded, spec))


def run(engine: TransformersEngine, sampling: Sampling = SAMPLING) -> list[Draft]:
    """Two completions of each prompt, of which three rows fit at once."""
    requests = [
        Request(prompt_ids=np.array(prompt, np.int32), sampling=sampling, index=index)
        for prompt in PROMPTS
        for index in range(2)
    ]
    return engine.generate(requests, threading.Event())


def logits_before(loaded: LoadedModel, prompt: list[int], draft: Draft) -> torch.Tensor:
    """By one pass over the whole, [length, vocabulary]."""
    ids = torch.tensor([*prompt, *draft.token_ids])[None]
    with torch.inference_mode():
        return loaded.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]


def moved(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """Other weights of the same model."""
    torch.manual_seed(1)
    return {
        name: tensor + 0.1 * torch.randn_like(tensor)
        for name, tensor in loaded.model.named_parameters()
        if not name.startswith("lm_head")
    }


def test_tokens_are_drawn_within_the_nucleus_of_the_older_weights(folder: Path) -> None:
    """Policy and mask model apart: every mask is the mask model's nucleus, both log-probs are the policy's."""
    engine, policy, old = (
        engine_on(loaded_from(folder), top_p=0.6, min_tokens=2),
        *map(loaded_from, [folder] * 2),
    )
    new = moved(policy)
    engine.load_weights(new)
    policy.model.load_state_dict(new, strict=False)
    for at, draft in enumerate(run(engine)):
        prompt = PROMPTS[at // 2]
        allowed = nucleus(logits_before(old, prompt, draft), top_p=0.6, min_tokens=2)
        assert draft.masks is not None
        np.testing.assert_array_equal(draft.masks, packed(allowed).numpy())
        rows, ids = torch.arange(len(draft.token_ids)), torch.tensor(draft.token_ids, dtype=torch.long)
        assert allowed[rows, ids].all()
        logits = logits_before(policy, prompt, draft)
        masked = (logits / 0.9).masked_fill(~allowed, -torch.inf).log_softmax(-1)
        np.testing.assert_allclose(draft.sampled_logprobs, masked[rows, ids], atol=2e-5)
        np.testing.assert_allclose(draft.raw_logprobs, logits.log_softmax(-1)[rows, ids], atol=2e-5)


def test_new_weights_of_the_mask_model_change_the_masks(folder: Path) -> None:
    """Under its own name it becomes the policy, all tensors in place; then its nuclei are the policy's."""
    loaded = loaded_from(folder)
    engine, new = engine_on(loaded, top_p=0.6, min_tokens=2), moved(loaded)
    before = run(engine)
    engine.load_weights({f"mask_model/{name}": tensor for name, tensor in new.items()})
    served = engine.weights()
    assert all(torch.equal(served[f"mask_model/{name}"], tensor) for name, tensor in new.items())
    after = run(engine)
    assert any(not np.array_equal(one.masks, two.masks) for one, two in zip(before, after, strict=True))
    other = loaded_from(folder)
    other.model.load_state_dict(new, strict=False)
    draft = after[0]
    expected = nucleus(logits_before(other, PROMPTS[0], draft), top_p=0.6, min_tokens=2)
    np.testing.assert_array_equal(draft.masks, packed(expected).numpy())


def test_a_mask_of_everything_is_plain_sampling(folder: Path) -> None:
    """top_p 1: the same tokens and log-probs as without one."""
    plain = run(TransformersEngine(loaded_from(folder), max_rows=3))
    for one, two in zip(run(engine_on(loaded_from(folder), top_p=1.0, min_tokens=1)), plain, strict=True):
        np.testing.assert_array_equal(one.token_ids, two.token_ids)
        np.testing.assert_allclose(one.sampled_logprobs, two.sampled_logprobs, atol=2e-5)


def test_a_draft_goes_on_with_its_masks(folder: Path) -> None:
    """Cut after some tokens and handed over, it ends with the tokens and masks that it would have had."""
    engine = engine_on(loaded_from(folder), top_p=0.7, min_tokens=3)
    whole = run(engine)[0]
    cut = replace(
        whole,
        token_ids=whole.token_ids[:4],
        raw_logprobs=whole.raw_logprobs[:4],
        sampled_logprobs=whole.sampled_logprobs[:4],
        masks=None if whole.masks is None else whole.masks[:4],
        finish=None,
    )
    request = Request(prompt_ids=np.array(PROMPTS[0], np.int32), sampling=SAMPLING, draft=cut)
    [ended] = engine.generate([request], threading.Event())
    np.testing.assert_array_equal(ended.token_ids, whole.token_ids)
    np.testing.assert_array_equal(ended.masks, whole.masks)


def test_an_end_that_may_not_come_yet_is_not_in_the_mask(folder: Path) -> None:
    """With a least number of tokens the end is masked until then; a mask that might leave nothing else is refused."""
    loaded = loaded_from(folder)
    end, sampling = loaded.tokenizer.eos_token_id, replace(SAMPLING, min_new_tokens=6)
    for draft in run(engine_on(loaded, top_p=1.0, min_tokens=2), sampling):
        assert draft.masks is not None
        allowed = unpacked(torch.tensor(draft.masks), 263)
        assert allowed[:, end].tolist() == [at >= 6 for at in range(len(allowed))]
    with pytest.raises(InvalidInput, match=r"decoding\.mask\.min_tokens of 2 would always leave another"):
        run(engine_on(loaded, top_p=0.5, min_tokens=1), sampling)

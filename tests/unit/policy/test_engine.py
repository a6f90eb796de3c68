"""The transformers engine on a tiny random model in float32."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.common.errors import Corrupted, InvalidInput, Mismatch
from services.models.loading import LoadedModel
from services.models.logprobs import completion_logprobs
from services.policy.engines.base import Draft, Request, Sampling
from services.policy.engines.transformers_engine import TransformersEngine
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, random_pairs

CONTEXT = 64
PROMPTS = [prompt for prompt, _ in random_pairs(9, seed=2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", context_length=CONTEXT, width=32)


@pytest.fixture
def loaded(folder: Path) -> LoadedModel:
    return loaded_from(folder)


def ids(*values: int) -> Any:
    return np.array(values, np.int32)


def requests(sampling: Sampling, prompts: list[Any] | None = None) -> list[Request]:
    return [
        Request(prompt_ids=prompt, sampling=sampling, index=at)
        for at, prompt in enumerate(PROMPTS if prompts is None else prompts)
    ]


def run(engine: TransformersEngine, wanted: list[Request]) -> list[Draft]:
    return engine.generate(wanted, threading.Event())


def assert_same(one: Draft, two: Draft) -> None:
    assert one.token_ids.tolist() == two.token_ids.tolist()
    assert one.finish == two.finish
    np.testing.assert_allclose(one.raw_logprobs, two.raw_logprobs, atol=1e-5, rtol=0)
    np.testing.assert_allclose(one.sampled_logprobs, two.sampled_logprobs, atol=1e-5, rtol=0)


def ending_often(loaded: LoadedModel) -> LoadedModel:
    """The same model, with every third id an end token by its generation config, so that rows end early."""
    loaded.model.generation_config.eos_token_id = list(range(0, 263, 3))
    return loaded


def test_greedy_equals_a_naive_loop(loaded: LoadedModel) -> None:
    """Temperature 0 takes the best token of a whole forward pass each time, whatever the padding and the cache."""
    drafts = run(TransformersEngine(loaded), requests(Sampling(temperature=0, max_new_tokens=12)))
    for prompt, draft in zip(PROMPTS, drafts, strict=True):
        sequence = prompt.tolist()
        for token in draft.token_ids.tolist():
            with torch.inference_mode():
                assert token == int(loaded.model(torch.tensor([sequence])).logits[0, -1].argmax())
            sequence.append(token)
        assert len(draft.token_ids) == 12 or draft.finish == "stop"


@pytest.mark.parametrize(
    "sampling", [Sampling(seed=5, max_new_tokens=16), Sampling(seed=5, top_k=40, top_p=0.9)]
)
def test_a_completion_is_the_same_whatever_shares_its_batch(loaded: LoadedModel, sampling: Sampling) -> None:
    """Alone, among eight others that end at other times, or in batches of two: the draws are the same."""
    engine = TransformersEngine(ending_often(loaded))
    together = run(engine, requests(sampling))
    assert len({len(draft.token_ids) for draft in together}) > 3
    for wanted, draft in zip(requests(sampling), together, strict=True):
        [alone] = run(engine, [wanted])
        assert_same(draft, alone)
    for draft, other in zip(
        together, run(TransformersEngine(loaded, max_rows=2), requests(sampling)), strict=True
    ):
        assert_same(draft, other)


def test_unlike_samplers_in_one_call(loaded: LoadedModel) -> None:
    """Greedy and sampled requests in one call each get what they get alone, in the order given."""
    engine = TransformersEngine(loaded)
    wanted = [
        replace(request, sampling=Sampling(temperature=at % 3 * 0.5, seed=at, max_new_tokens=5 + at % 4))
        for at, request in enumerate(requests(Sampling()))
    ]
    for request, draft in zip(wanted, run(engine, wanted), strict=True):
        assert_same(draft, run(engine, [request])[0])


def test_seed_and_index_decide_the_draws(loaded: LoadedModel) -> None:
    """The same seed gives the same, another seed or another index something else."""
    engine, prompt = TransformersEngine(loaded), ids(1, 2, 3)

    def tokens(seed: int, index: int) -> list[int]:
        request = Request(prompt_ids=prompt, sampling=Sampling(seed=seed, max_new_tokens=10), index=index)
        return list(run(engine, [request])[0].token_ids)

    assert tokens(1, 0) == tokens(1, 0)
    assert tokens(1, 0) != tokens(2, 0)
    assert tokens(1, 0) != tokens(1, 1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_raw_and_sampled_logprobs(loaded: LoadedModel, temperature: float) -> None:
    """Raw are the model's own at temperature 1, sampled those at the temperature drawn with."""
    drafts = run(
        TransformersEngine(loaded), requests(Sampling(temperature=temperature, seed=3, max_new_tokens=9))
    )
    pairs = [(prompt, draft.token_ids) for prompt, draft in zip(PROMPTS, drafts, strict=True)]
    raw = completion_logprobs(loaded.model, pairs, temperature=1.0, token_budget=500)
    sampled = completion_logprobs(loaded.model, pairs, temperature=temperature, token_budget=500)
    for draft, one, two in zip(drafts, raw, sampled, strict=True):
        np.testing.assert_allclose(draft.raw_logprobs, one, atol=2e-5, rtol=0)
        np.testing.assert_allclose(draft.sampled_logprobs, two, atol=2e-5, rtol=0)


def test_sampled_logprobs_are_of_the_truncated_distribution(loaded: LoadedModel) -> None:
    """With top_k = 2 the two kept tokens share probability 1: exp(raw) over the sum of the two best."""
    [draft] = run(
        TransformersEngine(loaded), requests(Sampling(top_k=2, seed=1, max_new_tokens=1), PROMPTS[:1])
    )
    with torch.inference_mode():
        logs = loaded.model(torch.tensor([PROMPTS[0].tolist()])).logits[0, -1].log_softmax(-1)
    best = logs.topk(2)
    assert int(draft.token_ids[0]) in best.indices.tolist()
    assert draft.sampled_logprobs[0] == pytest.approx(
        float(draft.raw_logprobs[0]) - float(best.values.logsumexp(0)), abs=1e-5
    )


@pytest.mark.parametrize("after", [1, 7, 40])
def test_a_draft_is_continued_as_if_it_had_never_stopped(loaded: LoadedModel, after: int) -> None:
    """Stopped after some tokens and continued elsewhere, a completion is the uninterrupted one."""
    engine, sampling = TransformersEngine(loaded), Sampling(seed=8, max_new_tokens=12)
    whole = run(engine, requests(sampling))
    stopping, seen = threading.Event(), 0

    def emit(index: int, token: int, logprob: float) -> None:
        nonlocal seen
        seen += 1
        if seen >= after:
            stopping.set()

    halves = engine.generate(requests(sampling), stopping, emit)
    assert any(draft.finish is None for draft in halves)
    assert 0 < sum(len(draft.token_ids) for draft in halves) < sum(len(draft.token_ids) for draft in whole)
    other = TransformersEngine(loaded, max_rows=4)
    wanted = [replace(r, draft=draft) for r, draft in zip(requests(sampling), halves, strict=True)]
    for one, two in zip(whole, run(other, wanted), strict=True):
        assert_same(one, two)


def test_stopping_before_the_start_leaves_the_drafts_as_they_were(loaded: LoadedModel) -> None:
    """With `stopping` set nothing is drawn; what was finished stays finished."""
    stopping = threading.Event()
    stopping.set()
    done = Draft(token_ids=ids(4), raw_logprobs=np.ones(1, np.float32), finish="stop")
    wanted = requests(Sampling(), PROMPTS[:2])
    first, second = TransformersEngine(loaded).generate([replace(wanted[0], draft=done), wanted[1]], stopping)
    assert first is done
    assert (len(second.token_ids), second.finish) == (0, None)


def test_finished_drafts_are_not_touched(loaded: LoadedModel) -> None:
    """A group that comes back with one completion done only goes on with the other."""
    done = Draft(token_ids=ids(4), raw_logprobs=np.ones(1, np.float32), finish="length")
    wanted = requests(Sampling(max_new_tokens=3), PROMPTS[:2])
    first, second = run(TransformersEngine(loaded), [replace(wanted[0], draft=done), wanted[1]])
    assert first is done
    assert second.finish is not None


def test_end_tokens_end_and_stand_in_the_completion(loaded: LoadedModel) -> None:
    """A completion ends with its first end token, which is part of it, or at its length without one."""
    drafts = run(TransformersEngine(ending_often(loaded)), requests(Sampling(seed=1, max_new_tokens=5)))
    for draft in drafts:
        ends = [token % 3 == 0 for token in draft.token_ids.tolist()]
        assert not any(ends[:-1])
        assert draft.finish == ("stop" if ends[-1] else "length")
        assert ends[-1] or len(ends) == 5
    assert {draft.finish for draft in drafts} == {"stop", "length"}


def test_no_end_before_the_minimum(loaded: LoadedModel) -> None:
    """Below min_new_tokens end tokens cannot be drawn, and sampled log-probs are of what could be."""
    sampling = Sampling(seed=1, min_new_tokens=4, max_new_tokens=9)
    drafts = run(TransformersEngine(ending_often(loaded)), requests(sampling))
    for prompt, draft in zip(PROMPTS, drafts, strict=True):
        tokens = draft.token_ids.tolist()
        assert len(tokens) >= 4
        # The fifth and later may end it: from 4 tokens on nothing is forbidden.
        assert not any(token % 3 == 0 for token in tokens[:4])
        with torch.no_grad():
            logits = loaded.model(torch.tensor([prompt.tolist()])).logits[0, -1]
        logits[::3] = -torch.inf
        assert draft.sampled_logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[tokens[0]]), abs=1e-5)
        assert draft.raw_logprobs[0] < draft.sampled_logprobs[0]
    assert {draft.finish for draft in drafts} >= {"stop"}


def test_stop_strings(loaded: LoadedModel) -> None:
    """A completion ends with the token that completes a stop string, and no earlier."""
    engine, sampling = TransformersEngine(loaded), Sampling(seed=4, max_new_tokens=20)
    free = run(engine, requests(sampling))
    texts = [engine.decode(draft.token_ids) for draft in free]
    letters = (c for text in texts for c in text[3:] if c.isascii() and c.isprintable())
    letter = next(c for c in letters if not all(c in text for text in texts))
    drafts = run(engine, requests(replace(sampling, stop=("never there", letter))))
    for text, whole, draft in zip(texts, free, drafts, strict=True):
        found = engine.decode(draft.token_ids)
        assert draft.token_ids.tolist() == whole.token_ids.tolist()[: len(draft.token_ids)]
        if letter in text:
            assert found.count(letter) == 1
            assert found.endswith(letter)
            assert draft.finish == "stop"
        else:
            assert found == text


def test_a_special_token_may_be_a_stop_string(loaded: LoadedModel) -> None:
    """As a base model's <|im_end|>, which is no end token of it: it ends the completion, whose text is without it."""
    user = loaded.tokenizer.convert_tokens_to_ids("<|user|>")

    def third(logits: torch.Tensor, _states: Any, sequences: Any) -> torch.Tensor:
        due = [row for row, sequence in enumerate(sequences) if len(sequence) == 5]
        changed = logits.clone()
        changed[due, user] = 1e4
        return changed

    engine = TransformersEngine(loaded, processors=[third])
    sampling = Sampling(seed=4, max_new_tokens=6, min_new_tokens=6)
    [free] = run(engine, requests(sampling, [ids(11, 12, 13)]))
    [draft] = run(engine, requests(replace(sampling, stop=("<|user|>",)), [ids(11, 12, 13)]))
    assert free.token_ids[2] == user
    assert draft.token_ids.tolist() == free.token_ids.tolist()[:3]
    assert draft.finish == "stop"
    assert "user" not in engine.decode(draft.token_ids)


def test_the_context_bounds_the_length(loaded: LoadedModel) -> None:
    """4 tokens short of the context a completion has at most 4 tokens and ends for its length."""
    prompt = np.full(CONTEXT - 4, 9, np.int32)
    short = Request(prompt_ids=ids(1), sampling=Sampling(max_new_tokens=30))
    long = Request(prompt_ids=prompt, sampling=Sampling(max_new_tokens=30), index=1)
    one, two = run(TransformersEngine(loaded), [long, short])
    assert (len(one.token_ids), one.finish) == (4, "length")
    assert len(two.token_ids) > 4
    assert_same(two, run(TransformersEngine(loaded), [short])[0])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt has no tokens"),
        ([1, 263], "outside the vocabulary of 263"),
        ([-1], "outside the vocabulary of 263"),
        ([1] * CONTEXT, "the prompt has 64 tokens; the context of 64 leaves no room"),
    ],
)
def test_bad_prompts_are_refused(loaded: LoadedModel, prompt: list[int], message: str) -> None:
    """No tokens, ids past the vocabulary, no room in the context: each a clear line, before anything runs."""
    with pytest.raises(InvalidInput, match=message):
        run(TransformersEngine(loaded), requests(Sampling(), [ids(1), ids(*prompt)]))


def test_every_token_is_emitted_once(loaded: LoadedModel) -> None:
    """What is streamed is what the draft has, in order, with the raw log-probs."""
    heard: dict[int, list[tuple[int, float]]] = {}

    def emit(index: int, token: int, logprob: float) -> None:
        heard.setdefault(index, []).append((token, logprob))

    wanted = requests(Sampling(max_new_tokens=6), PROMPTS[:3])
    drafts = TransformersEngine(loaded).generate(wanted, threading.Event(), emit)
    for at, draft in enumerate(drafts):
        tokens, logprobs = zip(*heard[at], strict=True)
        assert list(tokens) == draft.token_ids.tolist()
        np.testing.assert_allclose(logprobs, draft.raw_logprobs, atol=1e-7)


def test_weights_are_swapped_whole_or_not_at_all(loaded: LoadedModel) -> None:
    """One wrong name, shape or dtype among good tensors, and no tensor changes; good ones change the answers."""
    engine = TransformersEngine(loaded)
    before = {name: value.clone() for name, value in engine.weights().items()}
    new = {name: value + 0.1 for name, value in before.items()}
    last = list(new)[-1]
    for wrong, message in (
        ({"no.such": torch.zeros(1)}, "does not have: no.such"),
        ({last: torch.zeros(3, 3)}, "weights bring torch.float32"),
        ({last: new[last].bfloat16()}, "weights bring torch.bfloat16"),
    ):
        with pytest.raises(Mismatch, match=message):
            engine.load_weights({**new, **wrong})
        assert all(torch.equal(value, before[name]) for name, value in engine.weights().items())
    answers = run(engine, requests(Sampling(temperature=0)))
    engine.load_weights(new)
    assert all(torch.equal(value, new[name]) for name, value in engine.weights().items())
    changed = run(engine, requests(Sampling(temperature=0)))
    assert any(a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(answers, changed, strict=True))
    # The tied head stands once, and the model's own copy of it changed too.
    assert torch.equal(loaded.model.lm_head.weight, new["model.embed_tokens.weight"])


def test_completions_of_one_prompt_are_those_it_has_alone(loaded: LoadedModel) -> None:
    """A group's shared prompt is read once, and each completion is what it is without the others."""
    sampling = Sampling(seed=3, max_new_tokens=8)
    engine = TransformersEngine(loaded)
    wanted = [Request(prompt_ids=PROMPTS[at % 2], sampling=sampling, index=at) for at in range(6)]
    for request, draft in zip(wanted, run(engine, wanted), strict=True):
        assert_same(draft, run(engine, [request])[0])


def test_processors_change_what_is_drawn_but_not_the_raw_logprobs(loaded: LoadedModel) -> None:
    """A mask of all but two tokens: only they are drawn, sampled log-probs are of them, raw ones of all."""
    seen: list[tuple[int, int]] = []

    def only_two(logits: torch.Tensor, states: torch.Tensor, sequences: Any) -> torch.Tensor:
        seen.append((len(sequences[0]), states.shape[1]))
        mask = torch.full_like(logits, -torch.inf)
        mask[:, [40, 41]] = 0.0
        return logits + mask

    engine = TransformersEngine(loaded, processors=[only_two])
    [draft] = run(engine, requests(Sampling(seed=2, max_new_tokens=12), PROMPTS[:1]))
    assert set(draft.token_ids.tolist()) == {40, 41}
    assert seen == [(len(PROMPTS[0]) + at, 32) for at in range(12)]
    [raw] = completion_logprobs(
        loaded.model, [(PROMPTS[0], draft.token_ids)], temperature=1.0, token_budget=99
    )
    np.testing.assert_allclose(draft.raw_logprobs, raw, atol=2e-5, rtol=0)
    assert (draft.sampled_logprobs > draft.raw_logprobs).all()


def test_weights_that_are_no_numbers_stop_the_call_and_leave_no_trace(loaded: LoadedModel) -> None:
    """NaN weights are an error, not a completion; with good ones the answers are what they were."""
    engine, wanted = TransformersEngine(loaded), requests(Sampling(seed=1, max_new_tokens=6))
    before = run(engine, wanted)
    good = {name: value.clone() for name, value in engine.weights().items()}
    engine.load_weights({name: torch.full_like(value, torch.nan) for name, value in good.items()})
    with pytest.raises(Corrupted, match="not finite"):
        run(engine, wanted)
    engine.load_weights(good)
    for one, two in zip(before, run(engine, wanted), strict=True):
        assert_same(one, two)

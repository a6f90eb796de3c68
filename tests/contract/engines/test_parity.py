"""What every engine does alike, whichever runs; what one cannot do, it does not claim, and refuses."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from services.common.errors import ConfigError, InvalidInput, Mismatch
from services.models.logprobs import completion_logprobs
from services.policy.engines.base import Draft, Request, Sampling
from services.policy.engines.choice import check_capabilities
from services.policy.engines.transformers_engine import TransformersEngine
from tests.contract.engines.conftest import Subject, prompt_of
from tests.fakes.engine_servers import naive_completion

TEXTS = ["Once upon", "a", "The colour of the sky is", "xyz, 12", "Why? "]


def ask(subject: Subject, sampling: Sampling, texts: list[str] | None = None) -> list[Request]:
    prompts = [prompt_of(subject, text) for text in texts or TEXTS]
    return [Request(prompt_ids=ids, sampling=sampling, index=at) for at, ids in enumerate(prompts)]


def run(subject: Subject, requests: list[Request]) -> list[Draft]:
    return subject.engine.generate(requests, threading.Event())


def assert_naive(subject: Subject, request: Request, draft: Draft) -> None:
    """The draft is what the direct model's best tokens are."""
    limit = min(
        request.sampling.max_new_tokens, subject.direct.facts.context_length - len(request.prompt_ids)
    )
    expected = naive_completion(
        subject.direct,
        request.prompt_ids.tolist(),
        limit=limit,
        ends=tuple(subject.ends),
        stop=request.sampling.stop,
    )
    assert draft.finish == ("length" if expected.finish == "length" else "stop")
    if "token_ids" in subject.engine.capabilities or subject.engine.name == "tgi":
        assert draft.token_ids.tolist() == expected.tokens
    else:
        assert subject.engine.decode(draft.token_ids) == subject.direct.tokenizer.decode(
            expected.tokens, skip_special_tokens=True
        )


def test_greedy_decoding_gives_the_best_tokens(subject: Subject) -> None:
    """At temperature 0 every engine gives what a whole forward pass a token gives."""
    requests = ask(subject, Sampling(temperature=0, max_new_tokens=12))
    for request, draft in zip(requests, run(subject, requests), strict=True):
        assert_naive(subject, request, draft)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_logprobs_are_those_of_a_direct_pass(subject: Subject, temperature: float) -> None:
    """Within the stated bound, for every token; an engine that has none gives none."""
    requests = ask(subject, Sampling(temperature=temperature, seed=4, max_new_tokens=10))
    drafts = run(subject, requests)
    pairs = [(request.prompt_ids, draft.token_ids) for request, draft in zip(requests, drafts, strict=True)]
    if "sampled_logprobs" not in subject.engine.capabilities:
        assert all(len(draft.raw_logprobs) == len(draft.sampled_logprobs) == 0 for draft in drafts)
        return
    expected = completion_logprobs(subject.direct.model, pairs, temperature=1.0, token_budget=500)
    for draft, values in zip(drafts, expected, strict=True):
        np.testing.assert_allclose(draft.sampled_logprobs, values, atol=subject.bound, rtol=0)
        np.testing.assert_allclose(draft.raw_logprobs, values, atol=subject.bound, rtol=0)


def test_stop_strings_end_a_completion(subject: Subject) -> None:
    """It ends with the token that completes one, which it contains; the others go on."""
    free = run(subject, ask(subject, Sampling(temperature=0, max_new_tokens=20)))
    texts = [subject.engine.decode(draft.token_ids) for draft in free]
    letters = {c for text in texts for c in text[1:] if c.isascii() and c.isprintable()}
    stop = next(c for c in sorted(letters) if not all(c in text for text in texts))
    requests = ask(subject, Sampling(temperature=0, max_new_tokens=20, stop=("never there", stop)))
    drafts = run(subject, requests)
    for request, draft in zip(requests, drafts, strict=True):
        assert_naive(subject, request, draft)
    assert any(stop in subject.engine.decode(draft.token_ids) for draft in drafts)


def test_seeds_decide_the_draws(subject: Subject) -> None:
    """The same seed and index give the same completion, another seed or index another."""
    sampling = Sampling(seed=5, max_new_tokens=12)
    one, two = (run(subject, ask(subject, sampling, ["Once"] * 4)) for _ in range(2))
    assert [a.token_ids.tolist() for a in one] == [b.token_ids.tolist() for b in two]
    assert len({tuple(draft.token_ids) for draft in one}) > 1
    other = run(subject, ask(subject, replace(sampling, seed=6), ["Once"] * 4))
    assert [a.token_ids.tolist() for a in one] != [b.token_ids.tolist() for b in other]


def test_a_completion_may_be_empty(subject: Subject) -> None:
    """Where the best token is an end token at once, the text is empty and the reason is "stop"."""
    if subject.direct.facts.vocabulary_size > 1000:
        pytest.skip("needs the tiny model")
    letters = "abcdefghijkl"

    texts = ["".join(three) for three in product(letters, repeat=3)]
    ids = torch.tensor(subject.direct.tokenizer(texts)["input_ids"])
    with torch.inference_mode():
        states = subject.direct.model.base_model(ids).last_hidden_state[:, -1]
        best = subject.direct.model.get_output_embeddings()(states).argmax(-1)
    text = texts[int((best < 7).int().argmax())]
    [draft] = run(subject, ask(subject, Sampling(temperature=0, max_new_tokens=8), [text]))
    assert subject.engine.decode(draft.token_ids) == ""
    assert draft.finish == "stop"
    assert len(draft.token_ids) <= 1


def test_the_context_is_never_exceeded(subject: Subject) -> None:
    """A prompt that fills it is refused before anything runs; one that nearly does ends for its length."""
    context = subject.direct.facts.context_length
    with pytest.raises(InvalidInput, match="leaves no room"):
        run(subject, ask(subject, Sampling(), ["a", "b" * context]))
    [draft] = run(subject, ask(subject, Sampling(temperature=0, max_new_tokens=50), ["b" * (context - 3)]))
    assert len(draft.token_ids) <= 3
    assert draft.finish == ("length" if len(draft.token_ids) == 3 else "stop")


def test_finished_drafts_are_left_alone_and_unfinished_ones_continued(subject: Subject) -> None:
    """A finished draft comes back as it is. An engine that resumes goes on where one ended; another refuses."""
    greedy = Sampling(temperature=0, max_new_tokens=12)
    whole = run(subject, ask(subject, greedy))
    done = [replace(r, draft=draft) for r, draft in zip(ask(subject, greedy), whole, strict=True)]
    assert all(a is b for a, b in zip(run(subject, done), whole, strict=True))
    at = next(at for at, draft in enumerate(whole) if len(draft.token_ids) > 3)
    part = Draft(
        token_ids=whole[at].token_ids[:2],
        raw_logprobs=whole[at].raw_logprobs[:2],
        sampled_logprobs=whole[at].sampled_logprobs[:2],
    )
    wanted = replace(ask(subject, greedy)[at], draft=part)
    if "resume" not in subject.engine.capabilities:
        with pytest.raises(InvalidInput, match="cannot go on from a draft"):
            run(subject, [wanted])
        return
    [found] = run(subject, [wanted])
    assert found.token_ids.tolist() == whole[at].token_ids.tolist()
    assert len(found.raw_logprobs) == len(found.token_ids)


def test_stopping_hands_back_what_there_is(subject: Subject) -> None:
    """With the flag set from the start nothing is finished, and nothing is lost."""
    stopping = threading.Event()
    stopping.set()
    drafts = subject.engine.generate(ask(subject, Sampling(max_new_tokens=4)), stopping)
    assert [draft.finish for draft in drafts] == [None] * len(TEXTS)


def test_every_token_is_emitted_once(subject: Subject) -> None:
    """What is streamed is what the drafts have."""
    heard: dict[int, list[int]] = {}

    def emit(index: int, token: int, _: float) -> None:
        heard.setdefault(index, []).append(token)

    drafts = subject.engine.generate(ask(subject, Sampling(max_new_tokens=5)), threading.Event(), emit)
    assert [heard.get(at, []) for at in range(len(drafts))] == [draft.token_ids.tolist() for draft in drafts]


def test_what_it_cannot_do_is_refused_at_start(subject: Subject) -> None:
    """Capabilities that are not there are named in one line; those that are there pass."""
    check_capabilities(subject.engine, set(subject.engine.capabilities))
    if isinstance(subject.engine, TransformersEngine):
        return
    with pytest.raises(ConfigError, match=f"{subject.engine.name} cannot do .*: logits_processors"):
        check_capabilities(subject.engine, {"logits_processors", "stop_strings"})


def test_new_weights_answer_from_then_on(subject: Subject) -> None:
    """Weights arrive whole, and one wrong tensor changes nothing. An engine that takes none says so."""
    if "weight_updates" not in subject.engine.capabilities:
        with pytest.raises(Mismatch, match="cannot take new weights"):
            subject.engine.load_weights({"some.weight": torch.zeros(2)})
        return
    own = subject.engine.weights()
    generator = torch.Generator().manual_seed(3)
    before = {name: value.clone() for name, value in own.items()}
    new = {name: v + 0.05 * torch.randn(v.shape, generator=generator) for name, v in own.items()}
    last = list(new)[-1]
    with pytest.raises(Mismatch, match="weights bring"):
        subject.engine.load_weights({**new, last: torch.zeros(3, 3)})
    requests = ask(subject, Sampling(temperature=0, max_new_tokens=12))
    for request, draft in zip(requests, run(subject, requests), strict=True):
        assert_naive(subject, request, draft)
    direct = dict(subject.direct.model.named_parameters())
    try:
        subject.engine.load_weights(new)
        with torch.no_grad():
            for name, value in new.items():
                direct[name].copy_(value)
        assert all(torch.equal(value, new[name]) for name, value in subject.engine.weights().items())
        for request, draft in zip(requests, run(subject, requests), strict=True):
            assert_naive(subject, request, draft)
    finally:
        subject.engine.load_weights(before)
        with torch.no_grad():
            for name, value in before.items():
                direct[name].copy_(value)

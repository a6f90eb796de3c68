"""Weights that come while a batch is generated: kept, waited for, or handed back; every token under its own version."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from services.common.errors import Corrupted
from services.common.spec.run import SwapMode
from services.models.logprobs import completion_logprobs
from services.models.manifest import Manifest, Version, entries_of, whole_digest
from services.policy.engines.base import Draft, Emit, Request, Sampling
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.generation import CHECKED_SHARE, Policy, Spans, Update
from services.policy.servicer import PolicyServicer
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from
from trimtab.policy.v1 import policy_pb2 as wire

NORM = "model.norm.weight"
LENGTH, SWAP_AT = 12, 5
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", context_length=64)


def policy_of(folder: Path, swap: SwapMode) -> Policy:
    loaded = loaded_from(folder)
    return Policy(TransformersEngine(loaded), loaded.tokenizer, swap=swap)


def update_of(state: State, step: int) -> Update:
    entries = entries_of(state)
    return Update(Manifest(Version(1, step, whole_digest(entries)), entries), state)


def generated(
    policy: Policy, state: State, *, resume: bool = True, fixed: bool = False
) -> tuple[list[Request], list[Draft], list[Spans]]:
    """Three completions; `state` is offered when the first has SWAP_AT tokens."""
    sampling = Sampling(max_new_tokens=LENGTH, min_new_tokens=LENGTH, seed=3)
    requests = [
        Request(prompt_ids=np.arange(1, 4 + at, dtype=np.int32), sampling=sampling, index=at)
        for at in range(3)
    ]
    counts = [0, 0, 0]

    def emit(index: int, _token: int, _logprob: float) -> None:
        counts[index] += 1
        if counts == [SWAP_AT] * 3:
            policy.offer(update_of(state, 1))

    drafts, spans = policy.generate_noted(requests, threading.Event(), emit, resume=resume, fixed=fixed)
    return requests, drafts, spans


def changed(policy: Policy) -> State:
    state = {name: value.clone() for name, value in policy.engine.weights().items()}
    state[NORM] *= torch.linspace(0.5, 2, state[NORM].numel())
    return state


def served_under(
    folder: Path, states: dict[str, State], request: Request, draft: Draft, spans: Spans
) -> None:
    """Every token's log-prob is that of the version it is said to be of."""
    ends = [start for start, _ in spans[1:]] + [len(draft.token_ids)]
    for (start, version), end in zip(spans, ends, strict=True):
        model = loaded_from(folder).model
        model.load_state_dict(states[version.digest], strict=False)
        [expected] = completion_logprobs(
            model, [(request.prompt_ids, draft.token_ids)], temperature=1.0, token_budget=999
        )
        np.testing.assert_allclose(draft.raw_logprobs[start:end], expected[start:end], atol=1e-4, rtol=0)


@pytest.mark.parametrize("swap", ["keep", "abort_and_resume"])
def test_sequences_go_on_under_new_weights(folder: Path, swap: SwapMode) -> None:
    """Taken at the very next token; both spans are noted, and each token's log-prob is its own version's."""
    policy = policy_of(folder, swap)
    before = {name: value.clone() for name, value in policy.engine.weights().items()}
    after, old = changed(policy), policy.version
    requests, drafts, spans = generated(policy, after)
    states = {old.digest: before, policy.version.digest: after}
    assert len(states) == 2
    for request, draft, noted in zip(requests, drafts, spans, strict=True):
        assert draft.finish == "length"
        assert noted == [(0, old), (SWAP_AT, policy.version)]
        served_under(folder, states, request, draft, noted)


async def test_a_stream_names_the_version_of_each_token(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that come in the middle of it: tokens before and after say which drew them, as spans do."""
    policy = policy_of(folder, "keep")
    after, real, drawn = changed(policy), policy.engine.generate, 0

    def generate(requests: list[Request], stopping: threading.Event, emit: Emit) -> list[Draft]:
        def emit_and_offer(index: int, token: int, logprob: float) -> None:
            nonlocal drawn
            drawn += 1
            if drawn == SWAP_AT:
                policy.offer(update_of(after, 1))
            emit(index, token, logprob)

        return real(requests, stopping, emit_and_offer)

    monkeypatch.setattr(policy.engine, "generate", generate)
    with ThreadPoolExecutor(1) as executor:
        servicer = PolicyServicer(executor, max_completions=1, max_new_tokens=LENGTH)
        servicer.attach(policy)
        request = wire.GenerateStreamRequest()
        request.prompt.text = "Once"
        request.sampling.max_new_tokens = request.sampling.min_new_tokens = LENGTH
        messages = [message async for message in servicer.GenerateStream(request, None)]
    steps = [message.version.step for message in messages]
    assert steps == [0] * SWAP_AT + [1] * (LENGTH - SWAP_AT) + [1]
    assert len({message.version.digest for message in messages}) == 2


def test_waiting_leaves_a_batch_as_it_is(folder: Path) -> None:
    """It ends under the weights that it began with; the next one has the new ones."""
    policy = policy_of(folder, "wait")
    old, after = policy.version, changed(policy)
    _, drafts, spans = generated(policy, after)
    assert spans == [[(0, old)]] * 3
    assert all(len(draft.token_ids) == LENGTH for draft in drafts)
    policy.generate([], threading.Event())
    assert policy.version.step == 1


def test_a_stage_hands_back_what_is_unfinished(folder: Path) -> None:
    """With abort_and_resume: tokens so far, no end, and whoever goes on from there notes the new version."""
    policy = policy_of(folder, "abort_and_resume")
    old, after = policy.version, changed(policy)
    _, drafts, spans = generated(policy, after, resume=False)
    assert [(len(draft.token_ids), draft.finish) for draft in drafts] == [(SWAP_AT, None)] * 3
    assert spans == [[(0, old)]] * 3
    assert policy.version == old


def test_a_call_for_one_version_gets_it_alone(folder: Path) -> None:
    """Whoever requires exact weights is not switched to others in the middle."""
    policy = policy_of(folder, "keep")
    old, after = policy.version, changed(policy)
    _, drafts, spans = generated(policy, after, fixed=True)
    assert spans == [[(0, old)]] * 3
    assert all(draft.finish == "length" for draft in drafts)


def test_eight_swaps_look_at_every_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that leaves a single tensor as it was is found out, if not at once."""
    policy = policy_of(folder, "wait")
    victim, real = NORM, policy.engine.load_weights

    def all_but_one(tensors: State) -> None:
        real({name: tensor for name, tensor in tensors.items() if name != victim})

    monkeypatch.setattr(policy.engine, "load_weights", all_but_one)
    state = changed(policy)
    with pytest.raises(Corrupted, match=f"{victim}: the engine does not serve"):
        for step in range(1, CHECKED_SHARE + 1):
            state = {name: value + 0.25 for name, value in state.items()}
            policy.offer(update_of(state, step))
            policy.apply_offered()

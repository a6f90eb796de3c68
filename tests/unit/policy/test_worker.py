"""The policy stage as a worker sees it: groups in, groups edited in place."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.common.arrays import from_numpy, to_numpy
from services.common.errors import Unavailable
from services.models.wire import version_message
from services.policy.engines.base import Sampling
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.generation import Policy
from services.policy.requests import requests_for
from services.policy.worker import PolicyProcessor
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from
from trimtab.rollout.v1 import rollout_pb2 as rollout

LENGTH = 6


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder: Path = make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", context_length=32)
    loaded = loaded_from(folder)
    return Policy(TransformersEngine(loaded), loaded.tokenizer)


def processor_of(policy: Policy) -> PolicyProcessor:
    return PolicyProcessor(policy, stage="policy", replica="p1", max_new_tokens=16, wait_seconds=0.01)


def group_of(
    policy: Policy, ids: list[int], *, seed: int = 1, count: int = 2, **sampling: Any
) -> rollout.RolloutGroup:
    group = rollout.RolloutGroup(group_id=f"g{seed}", slip=["policy", "learner"])
    group.prompt.token_ids.CopyFrom(from_numpy(np.array(ids, np.int32)))
    group.sampling.temperature, group.sampling.max_new_tokens = 1.0, LENGTH
    group.sampling.seed, group.sampling.num_completions = seed, count
    for name, value in sampling.items():
        setattr(group.sampling, name, value)
    group.admitted_version.CopyFrom(version_message(policy.version))
    return group


def process(
    policy: Policy, *groups: rollout.RolloutGroup, stopping: threading.Event | None = None
) -> list[str]:
    outcomes = processor_of(policy).process(list(groups), stopping or threading.Event())
    return [outcome.kind for outcome in outcomes]


def test_every_completion_is_made(policy: Policy) -> None:
    """Each group gets its n completions, drawn by its own seed whatever shares the batch, with time and version."""
    groups = [group_of(policy, [1, 2, 3], seed=5), group_of(policy, [9], seed=6, count=3)]
    assert process(policy, *groups) == ["done", "done"]
    assert [len(group.completions) for group in groups] == [2, 3]
    for group in groups:
        prompt = to_numpy(group.prompt.token_ids)
        sampling = Sampling(max_new_tokens=LENGTH, seed=group.sampling.seed)
        alone = policy.generate(requests_for([prompt], sampling, len(group.completions)), threading.Event())
        for completion, draft in zip(group.completions, alone, strict=True):
            assert to_numpy(completion.token_ids).tolist() == draft.token_ids.tolist()
            np.testing.assert_allclose(
                to_numpy(completion.sampled_logprobs), draft.sampled_logprobs, atol=1e-5
            )
            assert completion.text == policy.engine.decode(draft.token_ids)
            assert [span.version.digest for span in completion.versions] == [policy.version.digest]
        [timing] = group.timings
        assert timing.tokens == sum(len(draft.token_ids) for draft in alone)
        assert (timing.stage, timing.replica) == ("policy", "p1")
        assert timing.model_seconds > 0


def test_a_bad_group_fails_alone(policy: Policy) -> None:
    """No ids, ids past the vocabulary, no room, senseless sampling: the good one is done all the same."""
    groups = [
        group_of(policy, []),
        group_of(policy, [999]),
        group_of(policy, [1] * 32),
        group_of(policy, [1], top_p=7.0),
        group_of(policy, [1, 2]),
    ]
    outcomes = processor_of(policy).process(groups, threading.Event())
    assert [outcome.kind for outcome in outcomes] == ["failed"] * 4 + ["done"]
    messages = []
    for outcome in outcomes[:4]:
        assert outcome.error is not None
        assert (outcome.error.code, outcome.error.origin) == ("INVALID_ARGUMENT", "policy")
        messages.append(outcome.error.message)
    assert messages == [
        "prompt.token_ids: expected at least 1 token ids, got 0",
        "prompt.token_ids: expected ids in [0, 263), got 999",
        "prompt.token_ids: expected fewer than the context's 32 tokens, got 32",
        "sampling.top_p: expected 0 to 1, got 7",
    ]


def test_a_drained_group_is_continued_elsewhere(policy: Policy) -> None:
    """Half-made groups are unfinished and carry their tokens; the next replica ends with the uninterrupted text."""
    whole, halved = group_of(policy, [4, 5], seed=3), group_of(policy, [4, 5], seed=3)
    assert process(policy, whole) == ["done"]
    stopping = threading.Event()
    draw = policy.engine._draw  # type: ignore[attr-defined]

    def draw_and_stop(*arguments: Any) -> Any:
        stopping.set()
        return draw(*arguments)

    policy.engine._draw = draw_and_stop  # type: ignore[attr-defined]
    try:
        assert process(policy, halved, stopping=stopping) == ["unfinished"]
    finally:
        policy.engine._draw = draw  # type: ignore[attr-defined]
    assert [completion.token_ids.shape[0] for completion in halved.completions] == [1, 1]
    assert process(policy, halved) == ["done"]
    for one, two in zip(whole.completions, halved.completions, strict=True):
        assert one.token_ids == two.token_ids
        assert (one.text, one.finish_reason) == (two.text, two.finish_reason)
        assert len(two.versions) == 1
    assert [timing.tokens for timing in halved.timings] == [2, whole.timings[0].tokens - 2]


def test_work_waits_for_the_weights_it_was_admitted_with(policy: Policy) -> None:
    """Without them: an error after the wait (counted and tried again), unfinished when the service drains."""
    group = group_of(policy, [1])
    group.admitted_version.epoch = 5
    with pytest.raises(Unavailable, match="epoch 5, step 0 did not arrive"):
        process(policy, group)
    stopping = threading.Event()
    stopping.set()
    assert process(policy, group, stopping=stopping) == ["unfinished"]
    assert not any(completion.versions for completion in group.completions)

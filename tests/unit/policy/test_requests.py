"""Between the contract's messages and the engine's words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.arrays import from_numpy, to_numpy
from services.common.errors import InvalidInput
from services.common.spec.run import LOWEST_TEMPERATURE
from services.models.manifest import Version
from services.policy.engines.base import Draft, Finish, Sampling
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.generation import Policy
from services.policy.requests import (
    TextSoFar,
    completion_of,
    draft_of,
    prompt_ids,
    requests_for,
    sampling_of,
    write_draft,
)
from tests.fakes.tiny_models import make_tiny_causal, tiny_tokenizer
from tests.fakes.tiny_runs import loaded_from
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1 import rollout_pb2 as rollout

ONE, TWO = Version(1, 4, "a" * 64), Version(1, 5, "b" * 64)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder: Path = make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", context_length=32)
    loaded = loaded_from(folder)
    return Policy(TransformersEngine(loaded), loaded.tokenizer)


def draft(tokens: int, finish: Finish | None = None) -> Draft:
    numbers = np.arange(tokens)
    return Draft(
        token_ids=numbers.astype(np.int32),
        raw_logprobs=-numbers.astype(np.float32),
        sampled_logprobs=-2 * numbers.astype(np.float32),
        finish=finish,
    )


def test_sampling_options_become_sampling() -> None:
    """Every field arrives; zero means off for top_p, and a default length."""
    options = common.SamplingOptions(
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        max_new_tokens=9,
        min_new_tokens=2,
        stop=["x", "yy"],
        seed=2**64 - 1,
        num_completions=3,
    )
    assert sampling_of(options, most_new_tokens=9) == Sampling(
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        max_new_tokens=9,
        min_new_tokens=2,
        stop=("x", "yy"),
        seed=2**64 - 1,
    )
    assert sampling_of(common.SamplingOptions(), most_new_tokens=500) == Sampling(
        temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=128, min_new_tokens=0
    )


def test_the_lowest_temperature_of_a_run_is_taken() -> None:
    """On the wire it is float32 and a little lower; less is refused."""
    lowest = sampling_of(common.SamplingOptions(temperature=LOWEST_TEMPERATURE), most_new_tokens=128)
    assert lowest.temperature == np.float32(LOWEST_TEMPERATURE)
    with pytest.raises(InvalidInput):
        sampling_of(common.SamplingOptions(temperature=0.99 * LOWEST_TEMPERATURE), most_new_tokens=128)


@pytest.mark.parametrize(
    ("options", "field", "expected"),
    [
        ({"temperature": -1}, "sampling.temperature", "expected 0, or 0.0001 or more, got -1"),
        ({"temperature": 1e-30}, "sampling.temperature", "expected 0, or 0.0001 or more, got 1e-30"),
        ({"temperature": float("nan")}, "sampling.temperature", "expected 0, or 0.0001 or more, got nan"),
        ({"temperature": float("inf")}, "sampling.temperature", "expected 0, or 0.0001 or more, got inf"),
        ({"top_p": 1.5}, "sampling.top_p", "expected 0 to 1, got 1.5"),
        ({"top_p": float("nan")}, "sampling.top_p", "expected 0 to 1, got nan"),
        ({"max_new_tokens": 65}, "sampling.max_new_tokens", "expected at most 64, got 65"),
        (
            {"min_new_tokens": 9, "max_new_tokens": 8},
            "sampling.min_new_tokens",
            "expected at most max_new_tokens = 8, got 9",
        ),
        (
            {"stop": ["a", ""], "max_new_tokens": 8},
            "sampling.stop",
            "expected stop strings that are not empty",
        ),
    ],
)
def test_senseless_sampling_is_refused(options: dict[str, object], field: str, expected: str) -> None:
    """Each value that means nothing is named with what was expected."""
    fields = {"max_new_tokens": 4, **options}
    with pytest.raises(InvalidInput) as caught:
        sampling_of(common.SamplingOptions(**fields), most_new_tokens=64)  # type: ignore[arg-type]
    assert caught.value.violations == {field: expected}


def test_prompts_come_as_ids_messages_or_text(policy: Policy) -> None:
    """Ids are taken as they are; messages go through the chat template; text is encoded; ids win over text."""
    text = "<|user|>hi<|end|><|assistant|>"
    encoded = policy.encode(messages=[], text=text).tolist()
    given_ids = from_numpy(np.array([5, 6], np.int32))
    hi = common.ChatMessage(role="user", content="hi")
    assert prompt_ids(rollout.Prompt(token_ids=given_ids, text="ignored"), policy, "p").tolist() == [5, 6]
    assert prompt_ids(rollout.Prompt(messages=[hi], text="ignored"), policy, "p").tolist() == encoded
    assert prompt_ids(rollout.Prompt(text=text), policy, "p").tolist() == encoded


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (rollout.Prompt(), "prompts[3]: the prompt is empty"),
        (
            rollout.Prompt(token_ids=from_numpy(np.array([263], np.int32))),
            "prompts[3].token_ids: expected ids in [0, 263), got 263",
        ),
        (
            rollout.Prompt(token_ids=from_numpy(np.zeros(32, np.int32))),
            "prompts[3].token_ids: expected fewer than the context's 32 tokens, got 32",
        ),
        (
            rollout.Prompt(text="x" * 40),
            "prompts[3].token_ids: expected fewer than the context's 32 tokens, got 40",
        ),
        (
            rollout.Prompt(token_ids=from_numpy(np.zeros(3, np.float32))),
            "prompts[3].token_ids: expected int32 [length], got float32 [3]",
        ),
    ],
)
def test_bad_prompts_name_their_field(policy: Policy, prompt: rollout.Prompt, message: str) -> None:
    """Empty, outside the vocabulary, over the context, not ids: which prompt, and what was expected."""
    with pytest.raises(InvalidInput) as caught:
        prompt_ids(prompt, policy, "prompts[3]")
    assert str(caught.value) == message


def test_a_draft_goes_through_the_wire_and_back() -> None:
    """Tokens, both log-probs and the finish come back as they went; an empty completion is an empty draft."""
    for finish in (None, "stop", "length"):
        sent = draft(3, finish)  # type: ignore[arg-type]
        back = draft_of(completion_of(sent, "abc", ONE))
        assert back.finish == finish
        for name in ("token_ids", "raw_logprobs", "sampled_logprobs"):
            np.testing.assert_array_equal(getattr(back, name), getattr(sent, name))
    empty = draft_of(rollout.Completion())
    assert (len(empty.token_ids), empty.finish) == (0, None)


def test_spans_say_which_weights_drew_which_tokens() -> None:
    """Two tokens under one version, two more under the next: spans start at 0 and 2, in place."""
    completion = completion_of(draft(2), "ab", ONE)
    completion.scores.add(stage="kept")
    write_draft(completion, draft(4, "stop"), "abcd", TWO)
    assert [(span.start, span.version.step) for span in completion.versions] == [(0, 4), (2, 5)]
    assert completion.finish_reason == common.FINISH_REASON_STOP
    assert completion.text == "abcd"
    assert to_numpy(completion.token_ids).tolist() == [0, 1, 2, 3]
    assert completion.scores[0].stage == "kept"


def test_the_same_weights_make_one_span() -> None:
    """Continued under the same bytes, even of a later epoch, it is one span."""
    completion = completion_of(draft(2), "ab", ONE)
    write_draft(completion, draft(4), "abcd", Version(2, 4, ONE.digest))
    assert [span.start for span in completion.versions] == [0]


def test_weights_that_drew_nothing_leave_no_span() -> None:
    """A draft that is handed back without a new token does not name weights that made nothing of it."""
    completion = completion_of(draft(0), "", ONE)
    assert not completion.versions
    write_draft(completion, draft(2), "ab", TWO)
    write_draft(completion, draft(2), "ab", ONE)
    assert [(span.start, span.version.step) for span in completion.versions] == [(0, 5)]


def test_drafts_that_do_not_fit_are_refused() -> None:
    """Fewer log-probs than tokens, or an end that is not known here, would be trained on wrongly."""
    short = completion_of(draft(3), "abc", ONE)
    short.raw_logprobs.CopyFrom(from_numpy(np.zeros(2, np.float32)))
    with pytest.raises(InvalidInput, match="3 tokens have 2 raw and 3 sampled log-probs"):
        draft_of(short)
    odd = completion_of(draft(3), "abc", ONE)
    odd.finish_reason = 77
    with pytest.raises(InvalidInput, match="finish_reason: 77 is not known here"):
        draft_of(odd)


def test_prompts_of_one_call_draw_differently() -> None:
    """The index goes through all completions of a call, in order."""
    made = requests_for([np.ones(1, np.int32), np.ones(2, np.int32)], Sampling(), 3)
    assert [(len(request.prompt_ids), request.index) for request in made] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 3),
        (2, 4),
        (2, 5),
    ]


@given(st.text(max_size=30))
def test_streamed_pieces_are_the_text(text: str) -> None:
    """Byte by byte, the pieces joined are the whole, and no piece shows half a character."""
    tokenizer = tiny_tokenizer()
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    so_far = TextSoFar(lambda ids: str(tokenizer.decode(ids.tolist(), skip_special_tokens=True)))
    pieces = [so_far.after(token) for token in tokens]
    pieces.append(so_far.rest())
    assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=True)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_what_never_became_a_character_comes_at_the_end() -> None:
    """A stream that ends within a character still gives everything that the whole text has."""
    tokenizer = tiny_tokenizer()
    tokens = tokenizer("aé", add_special_tokens=False)["input_ids"][:2]
    so_far = TextSoFar(lambda ids: str(tokenizer.decode(ids.tolist())))
    assert [so_far.after(token) for token in tokens] == ["a", ""]
    assert so_far.rest() == "\ufffd"

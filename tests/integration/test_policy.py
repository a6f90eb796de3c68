"""The policy service over real loopback gRPC, with a tiny random model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import torch

from services.common.arrays import to_numpy
from services.common.server import Endpoints, serving
from services.models.logprobs import completion_logprobs
from services.policy.application import PolicyApplication
from services.policy.config import PolicyConfig
from services.policy.engines.transformers_engine import TransformersEngine
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, model_spec
from trimtab.clients.errors import FailedPreconditionError, InvalidArgumentError
from trimtab.clients.policy import AsyncPolicyClient
from trimtab.common.v1 import common_pb2 as common
from trimtab.policy.v1 import policy_pb2 as wire
from trimtab.policy.v1 import policy_pb2_grpc as wire_grpc

CHAT = [{"role": "user", "content": "hi"}]
LAID_OUT = "<|user|>hi<|end|><|assistant|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", context_length=64, width=32)


@pytest_asyncio.fixture
async def endpoints(folder: Path) -> AsyncIterator[Endpoints]:
    config = PolicyConfig(model=model_spec(folder), max_completions=12, max_new_tokens=32, max_rows=4)
    async with serving(config, PolicyApplication(config)) as where:
        yield where


@pytest_asyncio.fixture
async def client(endpoints: Endpoints) -> AsyncIterator[AsyncPolicyClient]:
    async with AsyncPolicyClient(endpoints.grpc) as made:
        yield made


def ids_of(tensor: common.Tensor) -> list[int]:
    return [int(token) for token in to_numpy(tensor)]


async def test_info_says_who_it_is(client: AsyncPolicyClient, folder: Path) -> None:
    """Model, engine, what it can do, and the version of weights that no learner has published."""
    info, facts = await client.info(), loaded_from(folder).facts
    assert info.engine == "transformers"
    able = {
        "raw_logprobs",
        "sampled_logprobs",
        "resume",
        "stop_strings",
        "weight_updates",
        "logits_processors",
        "adapters",
    }
    assert list(info.capabilities) == sorted({*able, "token_ids", "seeds"})
    assert info.model.tokenizer_fingerprint == facts.tokenizer_fingerprint
    assert info.model.model_digest == facts.model_digest
    assert (info.model.context_length, info.model.vocabulary_size) == (64, 263)
    version = info.model.weights_version
    assert (version.epoch, version.step, len(version.digest)) == (0, 0, 64)


async def test_prompts_of_all_forms_in_one_call(client: AsyncPolicyClient, folder: Path) -> None:
    """Ids, messages and text each come back as they were fed, with completions of the model's own log-probs."""
    model = loaded_from(folder)
    encoded = model.tokenizer(LAID_OUT, add_special_tokens=False)["input_ids"]
    info = await client.info()
    results = await client.generate(
        [[1, 2, 3], CHAT, LAID_OUT],
        max_new_tokens=7,
        temperature=0.8,
        seed=3,
        num_completions=2,
        tokenizer_fingerprint=info.model.tokenizer_fingerprint,
        required_version=info.model.weights_version,
    )
    assert [ids_of(result.prompt_token_ids) for result in results] == [[1, 2, 3], encoded, encoded]
    for result in results:
        prompt = to_numpy(result.prompt_token_ids)
        assert len(result.completions) == 2
        for one in result.completions:
            completion = to_numpy(one.token_ids)
            for field, temperature in ((one.raw_logprobs, 1.0), (one.sampled_logprobs, 0.8)):
                [expected] = completion_logprobs(
                    model.model, [(prompt, completion)], temperature=temperature, token_budget=99
                )
                np.testing.assert_allclose(to_numpy(field), expected, atol=2e-5, rtol=0)
            assert one.text == model.tokenizer.decode(completion.tolist(), skip_special_tokens=True)
            assert one.finish_reason in (common.FINISH_REASON_STOP, common.FINISH_REASON_LENGTH)
            assert [(span.start, span.version) for span in one.versions] == [(0, info.model.weights_version)]
    # Same ids, another place in the call: other draws.
    assert ids_of(results[1].completions[0].token_ids) != ids_of(results[2].completions[0].token_ids)


async def test_the_seed_decides(client: AsyncPolicyClient) -> None:
    """The same call gives the same tokens, alone or beside other calls; greedy needs no seed."""
    calls = [client.generate([[1, 2]], max_new_tokens=9, seed=seed) for seed in (5, 5, 6)]
    one, two, three = (ids_of(result[0].completions[0].token_ids) for result in await asyncio.gather(*calls))
    assert one == two != three
    greedy = [
        ids_of(
            (await client.generate([[1, 2]], max_new_tokens=9, temperature=0, seed=seed))[0]
            .completions[0]
            .token_ids
        )
        for seed in (1, 2)
    ]
    assert greedy[0] == greedy[1]


async def test_stop_strings_end_a_completion(client: AsyncPolicyClient) -> None:
    """The text ends with the stop string, and the reason says stop."""
    [whole] = await client.generate([CHAT], max_new_tokens=20, seed=2)
    letter = next(c for c in whole.completions[0].text[2:] if c.isascii() and c.isprintable())
    [cut] = await client.generate([CHAT], max_new_tokens=20, seed=2, stop=[letter])
    text = whole.completions[0].text
    assert cut.completions[0].text == text[: text.index(letter) + 1]
    assert cut.completions[0].finish_reason == common.FINISH_REASON_STOP


async def test_the_stream_is_the_completion(client: AsyncPolicyClient) -> None:
    """Tokens, log-probs and text of every completion arrive in pieces that join to the unary answer."""
    sampling: dict[str, Any] = {"max_new_tokens": 12, "seed": 4, "num_completions": 2}
    [result] = await client.generate([CHAT], **sampling)
    tokens: list[list[int]] = [[], []]
    logprobs: list[list[float]] = [[], []]
    texts, ends, messages = ["", ""], {}, 0
    async for message in client.stream(CHAT, **sampling):
        messages += 1
        at = message.completion_index
        texts[at] += message.text
        if message.finish_reason:
            ends[at] = (message.finish_reason, message.version.epoch, len(message.version.digest))
            continue
        tokens[at] += ids_of(message.token_ids)
        logprobs[at] += to_numpy(message.raw_logprobs).tolist()
    for at, one in enumerate(result.completions):
        assert tokens[at] == ids_of(one.token_ids)
        np.testing.assert_allclose(logprobs[at], to_numpy(one.raw_logprobs), atol=2e-5)
        assert texts[at] == one.text
        assert ends[at] == (one.finish_reason, 0, 64)
    assert messages == len(tokens[0]) + len(tokens[1]) + 2


async def test_a_caller_that_goes_away_stops_the_work(
    client: AsyncPolicyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled stream ends its decoding at the next token, and the model is free for the next call."""
    events: list[threading.Event] = []
    steps = 0
    generate, step = TransformersEngine.generate, TransformersEngine._step

    def noted_generate(self: Any, requests: Any, stopping: threading.Event, emit: Any = None) -> Any:
        events.append(stopping)
        return generate(self, requests, stopping, emit)

    def held_step(self: Any, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            # Here the caller goes away; were nobody told, decoding would go on after the wait.
            assert events[0].wait(30)
        return step(self, *arguments)

    monkeypatch.setattr(TransformersEngine, "generate", noted_generate)
    monkeypatch.setattr(TransformersEngine, "_step", held_step)
    stream = client.stream([1, 2], max_new_tokens=32, min_new_tokens=32)
    assert isinstance(stream, AsyncGenerator)
    await anext(stream)
    await stream.aclose()
    [result] = await client.generate([[3]], max_new_tokens=1, timeout_seconds=40)
    assert len(result.completions) == 1
    # The one step of the second call, and at most three of the first.
    assert steps <= 3 + 1


async def test_bad_requests(client: AsyncPolicyClient) -> None:
    """Each mistake is INVALID_ARGUMENT with the field and what was expected."""
    calls: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"prompts": []}, {"prompts": "at least one"}),
        ({"prompts": [[1]] * 5, "num_completions": 3}, {"prompts": "at most 12"}),
        ({"prompts": [[1]], "num_completions": 2**31}, {"prompts": "at most 12"}),
        ({"prompts": [[1], ""]}, {"prompts[1]": "expected token ids, messages or text"}),
        ({"prompts": [[1], [263]]}, {"prompts[1].token_ids": "expected ids in [0, 263), got 263"}),
        (
            {"prompts": [[1] * 64]},
            {"prompts[0].token_ids": "expected fewer than the context's 64 tokens, got 64"},
        ),
        (
            {"prompts": [[1]], "temperature": -1.0, "max_new_tokens": 33},
            {
                "sampling.temperature": "expected 0, or 0.0001 or more, got -1",
                "sampling.max_new_tokens": "expected at most 32, got 33",
            },
        ),
    ]
    for options, violations in calls:
        with pytest.raises(InvalidArgumentError) as caught:
            await client.generate(**{"max_new_tokens": 4, **options})
        assert caught.value.violations == violations
    with pytest.raises(InvalidArgumentError, match="expected ids in"):
        async for _ in client.stream([999], max_new_tokens=4):
            pass


async def test_another_tokenizer_or_version_is_refused(
    client: AsyncPolicyClient, endpoints: Endpoints
) -> None:
    """FAILED_PRECONDITION: ids of another tokenizer, unary and streamed, and weights that are not loaded."""
    with pytest.raises(FailedPreconditionError, match="the ids are of tokenizer 0000"):
        await client.generate([[1]], max_new_tokens=4, tokenizer_fingerprint="0" * 64)
    for version in (common.WeightsVersion(epoch=1, step=2), common.WeightsVersion(digest="0" * 64)):
        with pytest.raises(FailedPreconditionError, match="are asked for, those loaded are"):
            await client.generate([[1]], max_new_tokens=4, required_version=version)
    async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
        request = wire.GenerateStreamRequest(tokenizer_fingerprint="0" * 64)
        request.prompt.text = "hi"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in wire_grpc.PolicyServiceStub(channel).GenerateStream(request):  # type: ignore[attr-defined]
                pass
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_half_precision_is_served_too(folder: Path) -> None:
    """In bfloat16 greedy tokens are the model's own and log-probs agree within its 8 bits."""
    config = PolicyConfig(model=model_spec(folder, "bfloat16"))
    async with (
        serving(config, PolicyApplication(config)) as where,
        AsyncPolicyClient(where.grpc) as client,
    ):
        assert (await client.info()).model.dtype == common.DTYPE_BFLOAT16
        [result] = await client.generate([[1, 2, 3]], max_new_tokens=8, temperature=0)
    model = loaded_from(folder, "bfloat16").model
    [one] = result.completions
    pair = (np.array([1, 2, 3], np.int32), to_numpy(one.token_ids))
    [expected] = completion_logprobs(model, [pair], temperature=1.0, token_budget=99)
    np.testing.assert_allclose(to_numpy(one.raw_logprobs), expected, atol=0.1, rtol=0)
    assert torch.get_num_threads() == 1

"""The reference service over real loopback gRPC, with a tiny random model."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from services.common.arrays import from_numpy, to_numpy
from services.common.server import serving
from services.common.spec.run import LOWEST_TEMPERATURE
from services.common.spec.service import ModelSpec
from services.reference.application import ReferenceApplication
from services.reference.config import ReferenceConfig
from services.reference.worker import ReferenceProcessor
from tests.fakes.tiny_models import make_tiny_causal
from trimtab.clients.errors import FailedPreconditionError, InvalidArgumentError
from trimtab.clients.reference import AsyncReferenceClient
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1 import rollout_pb2 as rollout

Pairs = list[tuple[list[int], list[int]]]
PAIRS: Pairs = [([1, 2, 3], [4, 5, 6, 7]), ([9] * 20, [8]), ([3], list(range(40))), ([5, 6], [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", context_length=64)


def config_for(folder: Path, **fields: object) -> ReferenceConfig:
    model = ModelSpec(path=str(folder), dtype="float32", threads=1, device="cpu")
    return ReferenceConfig.model_validate({"model": model, **fields})


def expected(folder: Path, pairs: Pairs, temperature: float) -> list[np.ndarray]:
    """One sequence at a time, whole logits in float64: nothing shared with what is tested."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    values = []
    for prompt, completion in pairs:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + completion])).logits[0].double() / temperature
        logs = torch.log_softmax(logits, dim=-1)
        rows = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
        values.append(
            np.array([logs[row, token].item() for row, token in zip(rows, completion, strict=True)])
        )
    return values


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_agree_with_the_plain_model(folder: Path, temperature: float) -> None:
    """What comes over the wire is log softmax(logits / temperature) at the completion's tokens, in order."""
    async with (
        serving(config_for(folder), ReferenceApplication(config_for(folder))) as endpoints,
        AsyncReferenceClient(endpoints.grpc) as client,
    ):
        info = await client.info()
        results = await client.logprobs(
            PAIRS, temperature=temperature, tokenizer_fingerprint=info.tokenizer_fingerprint
        )
    assert info.architecture == common.ARCHITECTURE_CAUSAL
    assert info.context_length == 64
    for result, values in zip(results, expected(folder, PAIRS, temperature), strict=True):
        assert result.typecode == "f"
        np.testing.assert_allclose(np.asarray(result), values, atol=2e-6, rtol=0)


async def test_many_calls_at_once_each_get_their_own_answer(folder: Path) -> None:
    """Concurrent calls through the one model thread are not mixed up."""
    async with (
        serving(config_for(folder), ReferenceApplication(config_for(folder))) as endpoints,
        AsyncReferenceClient(endpoints.grpc) as client,
    ):
        pairs: Pairs = [([1, 2], [number + 10] * 3) for number in range(20)]
        answers = await asyncio.gather(*(client.logprobs([pair]) for pair in pairs))
    for [answer], values in zip(answers, expected(folder, pairs, 1.0), strict=True):
        np.testing.assert_allclose(np.asarray(answer), values, atol=2e-6, rtol=0)


async def test_the_lowest_temperature_of_a_run_is_taken(folder: Path) -> None:
    """On the wire it is float32 and a little lower."""
    async with (
        serving(config_for(folder), ReferenceApplication(config_for(folder))) as endpoints,
        AsyncReferenceClient(endpoints.grpc) as client,
    ):
        [answer] = await client.logprobs([([1], [2])], temperature=LOWEST_TEMPERATURE)
    assert np.isfinite(np.asarray(answer)).all()


async def test_bad_requests_name_their_fields(folder: Path) -> None:
    """Wrong ids, lengths, temperatures and tokenizers are refused, each with its field."""
    async with (
        serving(
            config_for(folder, max_sequences=8), ReferenceApplication(config_for(folder, max_sequences=8))
        ) as endpoints,
        AsyncReferenceClient(endpoints.grpc) as client,
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            await client.logprobs([([1], [2]), ([1], [99_999]), ([], [1]), ([1], [-1])], temperature=0.0)
        assert caught.value.violations == {
            "temperature": "expected a number from 0.0001, got 0",
            "sequences[1].completion_ids": "expected ids in [0, 263), got 99999",
            "sequences[2].prompt_ids": "expected at least 1 token ids, got 0",
            "sequences[3].completion_ids": "expected ids in [0, 263), got -1",
        }
        with pytest.raises(
            InvalidArgumentError, match="at most 64 tokens, prompt and completion together, got 65"
        ):
            await client.logprobs([([1] * 60, [2] * 5)])
        with pytest.raises(InvalidArgumentError, match="sequences: expected at least one sequence"):
            await client.logprobs([])
        with pytest.raises(InvalidArgumentError, match="expected at most 8 in one call, got 9"):
            await client.logprobs([([1], [2])] * 9)
        with pytest.raises(FailedPreconditionError, match="tokenizer"):
            await client.logprobs([([1], [2])], tokenizer_fingerprint="0" * 64)


def group_of(pairs: Pairs, *, temperature: float, name: str = "g") -> rollout.RolloutGroup:
    group = rollout.RolloutGroup(group_id=name, slip=["reference", "learner"])
    group.sampling.temperature = temperature
    group.prompt.token_ids.CopyFrom(from_numpy(np.array(pairs[0][0], np.int32)))
    for _, completion in pairs:
        group.completions.add(token_ids=from_numpy(np.array(completion, np.int32)))
    return group


def processor_for(folder: Path) -> ReferenceProcessor:
    model = ReferenceApplication(config_for(folder))._load()
    return ReferenceProcessor(model, stage="reference", replica="r1")


def test_stage_sets_logprobs_and_times(folder: Path) -> None:
    """Every completion gets its log-probs at its own group's temperature; a bad group fails alone."""
    first: Pairs = [([1, 2, 3], [4, 5]), ([1, 2, 3], [6])]
    second: Pairs = [([7, 8], [9, 10, 11])]
    groups = [
        group_of(first, temperature=1.0),
        group_of([([1], [99_999])], temperature=1.0),
        group_of(second, temperature=0.5),
    ]
    outcomes = processor_for(folder).process(groups, threading.Event())
    assert [outcome.kind for outcome in outcomes] == ["done", "failed", "done"]
    error = outcomes[1].error
    assert error is not None
    assert (error.code, error.origin) == ("INVALID_ARGUMENT", "reference")
    for group, pairs, temperature in ((groups[0], first, 1.0), (groups[2], second, 0.5)):
        for completion, values in zip(group.completions, expected(folder, pairs, temperature), strict=True):
            found = to_numpy(completion.reference_logprobs)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, values, atol=2e-6, rtol=0)
    assert [timing.tokens for timing in groups[0].timings] == [9]
    assert groups[0].timings[0].model_seconds > 0
    assert groups[0].timings[0].replica == "r1"


def test_stage_hands_back_when_it_is_told_to_stop(folder: Path) -> None:
    """With `stopping` set nothing is computed and every good group is unfinished."""
    stopping = threading.Event()
    stopping.set()
    group = group_of([([1], [2])], temperature=1.0)
    [outcome] = processor_for(folder).process([group], stopping)
    assert outcome.kind == "unfinished"
    assert not group.completions[0].HasField("reference_logprobs")

"""The reward service over real loopback gRPC, with tiny random reward models and rules."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.common.server import serving
from services.models.reward_model import load_reward_model
from services.models.scorer import ScoreText
from services.reward.administration import source_at
from services.reward.application import RewardApplication
from services.reward.config import RewardConfig
from services.reward.scoring import RewardModels
from services.reward.shadow import COMPARED
from services.reward.worker import RewardProcessor
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_reward_model
from trimtab.clients.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from trimtab.clients.reward import AsyncRewardClient, conversation_inputs, text_inputs
from trimtab.clients.tensors import ids_tensor
from trimtab.reward.v1 import reward_pb2 as wire
from trimtab.rollout.v1 import rollout_pb2 as rollout

PROMPTS = ["How are you?", "Tell me of the sea.", "x"]
ANSWERS = ["I am wonderful, thank you!", "It is terrible and sad.", "The tide comes in. " * 20]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reward")
    return {
        "last": make_tiny_reward_model(root / "last", pooling="last", seed=1),
        "mean": make_tiny_reward_model(root / "mean", pooling="mean", seed=2),
        "other": make_tiny_reward_model(root / "other", pooling="last", seed=3),
        "poison": make_tiny_reward_model(root / "poison", pooling="last", seed=4, poison=True),
        "causal": make_tiny_causal(root / "causal"),
    }


def config_for(*models: tuple[str, str], **fields: object) -> RewardConfig:
    entries = [
        {"name": name, "rule": place[5:]} if place.startswith("rule:") else {"name": name, "path": place}
        for name, place in models
    ]
    return RewardConfig.model_validate(
        {"models": entries, "dtype": "float32", "device": "cpu", "threads": 1, **fields}
    )


@asynccontextmanager
async def client_of(config: RewardConfig) -> AsyncIterator[AsyncRewardClient]:
    async with (
        serving(config, RewardApplication(config)) as endpoints,
        AsyncRewardClient(endpoints.grpc) as client,
    ):
        yield client


@pytest.mark.parametrize("kind", ["last", "mean"])
async def test_scores_are_the_models_own(folders: dict[str, Path], kind: str) -> None:
    """Scores over the wire are those of the model asked row by row, and name its digest and what was cut."""
    model = load_reward_model(str(folders[kind]), dtype="float32", threads=1, device="cpu")
    async with client_of(config_for((kind, str(folders[kind])))) as client:
        scores = await client.score(text_inputs(PROMPTS, ANSWERS), model=kind)
        [info] = await client.list_models()
    direct = [
        model.score([ScoreText((("user", prompt),), answer)])[0]
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]
    assert [score.value for score in scores] == pytest.approx(direct, abs=1e-5)
    assert len(set(direct)) == 3
    assert (
        {score.model_digest for score in scores} == {info.model.model_digest} == {model.facts().model_digest}
    )
    assert [score.truncated_tokens > 0 for score in scores] == [False, False, True]
    assert (info.kind, info.max_tokens) == ("model", 96)
    assert info.input == (wire.INPUT_KIND_MESSAGES if kind == "last" else wire.INPUT_KIND_TEXT)


async def test_truncation_counts_tokens(folders: dict[str, Path]) -> None:
    """truncated_tokens is exactly what did not fit: one token a byte, and those of the template."""
    async with client_of(config_for(("last", str(folders["last"])))) as client:
        [score] = await client.score(text_inputs(["abc"], ["d" * 200]))
    # <|user|> abc <|end|> <|assistant|>, 200 bytes, <|end|>
    assert score.truncated_tokens == 1 + 3 + 1 + 1 + 200 + 1 - 96


async def test_messages_and_text_agree(folders: dict[str, Path]) -> None:
    """A conversation of one user message and its answer scores as the same prompt and completion do."""
    conversation = [{"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": ANSWERS[0]}]
    async with client_of(config_for(("last", str(folders["last"])))) as client:
        [by_messages] = await client.score(conversation_inputs([conversation]))
        [by_text] = await client.score(text_inputs(PROMPTS[:1], ANSWERS[:1]))
    assert by_messages.value == by_text.value


async def test_rules_score_and_need_no_model() -> None:
    """A rule is scored like a model: positive words above negative ones, with the rule's digest."""
    async with client_of(config_for(("mood", "rule:sentiment"))) as client:
        values = await client.values(PROMPTS[:2], ANSWERS[:2], model="mood")
        [info] = await client.list_models()
    assert values[0] > 0 > values[1]
    assert (info.kind, info.name) == ("rule", "mood")
    assert info.model.model_digest


async def test_unreadable_rows_have_errors_in_their_place() -> None:
    """A row that cannot be read has an error where its score would be; its neighbours are scored."""
    inputs = [
        wire.ScoreInput(prompt="a", completion="good"),
        wire.ScoreInput(),
        wire.ScoreInput(completion_ids=ids_tensor([1, 2])),
        *conversation_inputs([[{"role": "user", "content": "no answer"}]]),
        wire.ScoreInput(prompt="a", completion="good"),
    ]
    async with client_of(config_for(("mood", "rule:sentiment"))) as client:
        scores = await client.score(inputs)
        with pytest.raises(FailedPreconditionError, match="token ids need tokenizer_fingerprint"):
            await client.score([inputs[2]])
    assert [score.HasField("value") for score in scores] == [True, False, False, False, True]
    assert [score.error.code for score in scores] == [
        "",
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "INVALID_ARGUMENT",
        "",
    ]
    assert scores[0].value == scores[4].value


async def test_a_score_that_is_no_number_is_an_error(folders: dict[str, Path]) -> None:
    """An infinite head output arrives as DATA_LOSS, never as a value."""
    async with client_of(config_for(("poison", str(folders["poison"])))) as client:
        [score] = await client.score(text_inputs(PROMPTS[:1], ANSWERS[:1]))
    assert not score.HasField("value")
    assert score.error.code == "DATA_LOSS"
    assert "not a finite number" in score.error.message


async def test_mistakes_have_their_codes(folders: dict[str, Path], tmp_path: Path) -> None:
    """Unknown names, empty calls, other tokenizers and folders that are no reward model are told apart."""
    unsafe = tmp_path / "unsafe"
    unsafe.mkdir()
    for name in ("config.json", "reward.json"):
        (unsafe / name).write_text((folders["last"] / name).read_text())
    (unsafe / "pytorch_model.bin").write_bytes(b"\x80\x04")
    async with client_of(config_for(("a", "rule:sentiment"), ("b", str(folders["last"])))) as client:
        rows = text_inputs(["p"], ["c"])
        with pytest.raises(NotFoundError, match="no reward model z; there are a, b"):
            await client.score(rows, model="z")
        with pytest.raises(InvalidArgumentError, match="expected a name; there are a, b"):
            await client.score(rows)
        with pytest.raises(InvalidArgumentError, match="at least one input"):
            await client.score([], model="a")
        with pytest.raises(AlreadyExistsError):
            await client.load_model("a", "rule:length")
        with pytest.raises(NotFoundError, match="no such folder"):
            await client.load_model("c", str(tmp_path / "nowhere"))
        with pytest.raises(InvalidArgumentError, match="without a scalar head"):
            await client.load_model("c", str(folders["causal"]))
        with pytest.raises(InvalidArgumentError, match="only safetensors are accepted"):
            await client.load_model("c", str(unsafe))
        with pytest.raises(InvalidArgumentError, match="rule 'nonsense' is not known"):
            await client.load_model("c", "rule:nonsense")
        with pytest.raises(InvalidArgumentError) as caught:
            await client.load_model("a b", "")
        assert set(caught.value.violations) == {"name", "path"}
        assert [info.name for info in await client.list_models()] == ["a", "b"]


async def test_starts_empty_and_loads_later(folders: dict[str, Path]) -> None:
    """Without any model the service answers that none is loaded; load, swap and unload change that."""
    async with client_of(config_for()) as client:
        with pytest.raises(NotFoundError, match="no reward model hh; none is loaded"):
            await client.score(text_inputs(["p"], ["c"]), model="hh")
        first = await client.load_model("hh", str(folders["last"]))
        [before] = await client.score(text_inputs(["p"], ["c"]), model="hh")
        swapped = await client.swap_model("hh", str(folders["other"]))
        [after] = await client.score(text_inputs(["p"], ["c"]), model="hh")
        await client.unload_model("hh")
        assert await client.list_models() == []
    assert before.model_digest == first.model.model_digest == swapped.replaced_digest
    assert after.model_digest == swapped.model.model.model_digest != before.model_digest
    assert after.value != before.value


async def test_swap_never_mixes_digests_in_a_batch(folders: dict[str, Path]) -> None:
    """While models are swapped under load every answer is wholly of one of them."""
    async with client_of(config_for(("hh", str(folders["last"])))) as client:
        inputs = text_inputs(PROMPTS, ANSWERS)
        known: dict[str, list[float]] = {}
        for place in ("other", "last"):
            await client.swap_model("hh", str(folders[place]))
            scores = await client.score(inputs)
            known[scores[0].model_digest] = [score.value for score in scores]
        swapping = asyncio.gather(
            *(client.swap_model("hh", str(folders[p])) for p in ("other", "last", "other"))
        )
        answers = []
        while not swapping.done():
            answers.append(await client.score(inputs))
        await swapping
    for scores in answers:
        [digest] = {score.model_digest for score in scores}
        assert [score.value for score in scores] == known[digest]


async def test_shadow_is_compared_and_never_seen(folders: dict[str, Path]) -> None:
    """A shadow scores the same rows into metrics; answers stay the model's own, and it cannot be unloaded."""
    models = config_for(("main", str(folders["last"])), ("candidate", str(folders["other"])))
    counter = COMPARED.labels("main", "candidate")
    async with client_of(models) as client:
        [plain] = await client.score(text_inputs(["p"], ["c"]), model="main")
        before = counter._value.get()
        await client.set_shadow("main", "candidate")
        [shadowed] = await client.score(text_inputs(["p"], ["c"]), model="main")
        with pytest.raises(FailedPreconditionError, match="is the shadow of main"):
            await client.unload_model("candidate")
        with pytest.raises(InvalidArgumentError, match="expected another model"):
            await client.set_shadow("main", "main")
        # The comparison is done beside the calls: nobody waits for it, and a busy machine is late with it.
        async with asyncio.timeout(30):
            while counter._value.get() == before:  # noqa: ASYNC110 - a metric rings no bell
                await asyncio.sleep(0.01)
        assert counter._value.get() == before + 1
        await client.set_shadow("main", "")
        await client.unload_model("candidate")
    assert (plain.value, plain.model_digest) == (shadowed.value, shadowed.model_digest)


def group_of(prompt: str, *answers: str) -> rollout.RolloutGroup:
    group = rollout.RolloutGroup(group_id="g", slip=["reward/mood", "learner"])
    group.prompt.text = prompt
    group.prompt.token_ids.CopyFrom(ids_tensor(range(len(prompt))))
    for answer in answers:
        group.completions.add(text=answer, token_ids=ids_tensor(range(len(answer))))
    return group


def processor_of(application: RewardApplication, models: RewardModels) -> RewardProcessor:
    return RewardProcessor(models, application._shadows, model="mood", stage="reward/mood", replica="r")


async def started(config: RewardConfig) -> RewardApplication:
    application = RewardApplication(config)
    await application.start()
    return application


async def test_stage_scores_every_completion() -> None:
    """The stage appends a score named after itself to each completion, and its time."""
    application = await started(config_for(("mood", "rule:sentiment")))
    groups = [group_of("p", "wonderful", "terrible"), group_of("p", "wonderful")]
    outcomes = processor_of(application, application._models).process(groups, threading.Event())
    assert [outcome.kind for outcome in outcomes] == ["done", "done"]
    values = [[each.scores[0].score.value for each in group.completions] for group in groups]
    assert values[0][0] == values[1][0] > 0 > values[0][1]
    assert {each.scores[0].stage for group in groups for each in group.completions} == {"reward/mood"}
    assert groups[0].timings[0].tokens == 2 + len("wonderful") + len("terrible")


async def test_stage_fails_a_group_of_which_one_row_fails() -> None:
    """A group with a completion that cannot be scored fails with that error, and its neighbours do not."""
    application = await started(config_for(("mood", "rule:sentiment")))
    groups = [group_of("p", "good", "x" * 200_000), group_of("p", "good"), group_of("p")]
    outcomes = processor_of(application, application._models).process(groups, threading.Event())
    assert [outcome.kind for outcome in outcomes] == ["failed", "done", "failed"]
    error = outcomes[0].error
    assert error is not None
    assert (error.code, error.origin) == ("INVALID_ARGUMENT", "reward/mood")


async def test_stage_hands_back_when_it_is_told_to_stop() -> None:
    """With `stopping` set nothing is scored and every group is unfinished."""
    application = await started(config_for(("mood", "rule:sentiment")))
    stopping = threading.Event()
    stopping.set()
    outcomes = processor_of(application, application._models).process([group_of("p", "good")], stopping)
    assert [outcome.kind for outcome in outcomes] == ["unfinished"]


async def test_a_model_that_is_loaded_during_the_drain_takes_no_work() -> None:
    """The call is answered; nobody would hand back what a worker took that began after the drain."""
    queue = {"url": "redis://127.0.0.1:1/0", "run_uid": "run", "stage": "reward/mood"}
    application = await started(config_for(queue=queue))
    await application.drain()
    slot = await application._administration.load("mood", source_at("rule:sentiment"))
    assert slot.name == "mood"
    assert application._worker is None


def test_reward_folder_holds_only_safe_files(folders: dict[str, Path]) -> None:
    """The maker of these tests writes what the service accepts: JSON and safetensors."""
    assert json.loads((folders["last"] / "reward.json").read_text())["pooling"] == "last"

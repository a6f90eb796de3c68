"""Functions, composites, remotes and judges in the real service: over gRPC, with a second service behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.common.errors import (
    Expired,
    InvalidInput,
    Mismatch,
    NotFound,
    ServiceError,
    TrimtabError,
    Unavailable,
)
from services.common.rules import make_rule
from services.common.server import Endpoints, serving
from services.reward.application import RewardApplication
from services.reward.config import RemoteSpec, RewardConfig
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow, TokenIds
from services.reward.rewards.remote import RemoteReward
from tests.fakes.http_server import HttpServer, Reply, in_turn
from trimtab.clients.errors import InvalidArgumentError, NotFoundError
from trimtab.clients.reward import AsyncRewardClient, text_inputs

FUNCTIONS = "tests.fakes.reward_functions"
GOOD, BAD = "It is wonderful.", "It is terrible."


@asynccontextmanager
async def service(*models: Mapping[str, Any], **server: Any) -> AsyncIterator[Endpoints]:
    """A reward service over gRPC and HTTP."""
    config = RewardConfig.model_validate(
        {"models": models, "device": "cpu", "threads": 1, "server": {"http_port": 0, **server}}
    )
    application = RewardApplication(config)
    async with serving(config, application) as endpoints:
        yield endpoints
    for name in application._models.names():
        await asyncio.to_thread(application._models.slot(name).source.close)


@asynccontextmanager
async def remote(url: str, **fields: Any) -> AsyncIterator[RemoteReward]:
    """A remote source, opened and closed beside the loop that serves the other side."""
    spec = RemoteSpec.model_validate({"url": url, "timeout_seconds": 20, **fields})
    source = await asyncio.to_thread(RemoteReward, spec)
    try:
        yield source
    finally:
        await asyncio.to_thread(source.close)


async def scored(source: RemoteReward, *rows: ScoreRow, caller: Caller | None = None) -> list[ScoreOutcome]:
    return await asyncio.wrap_future(source.submit(rows, caller or Caller()))


def row(completion: str, prompt: str = "q", **columns: str) -> ScoreRow:
    return ScoreRow(messages=(("user", prompt),), completion=completion, columns=columns)


def error_of(outcome: ScoreOutcome) -> TrimtabError:
    assert outcome.value is None
    assert outcome.error is not None
    return outcome.error


def url_of(endpoints: Endpoints, scheme: str) -> str:
    return f"grpc://{endpoints.grpc}" if scheme == "grpc" else f"http://{endpoints.http}"


# ------------------------------------------------------------------ the service with every kind


async def test_a_composite_of_every_kind_is_one_score() -> None:
    """Rule, function, judge and another service, summed; components are told; a part's error is the row's."""
    judged = Reply({"choices": [{"message": {"content": "4"}}]})
    with HttpServer(in_turn(judged)) as judge:
        async with service({"name": "words", "rule": "length"}) as other:
            models: list[dict[str, Any]] = [
                {"name": "mood", "rule": "sentiment"},
                {"name": "mine", "function": {"name": f"{FUNCTIONS}:misbehaves", "timeout_seconds": 20}},
                {"name": "judge", "judge": {"url": judge.url, "model": "m"}},
                {"name": "there", "remote": {"url": f"grpc://{other.grpc}", "model": "words"}},
                {
                    "name": "all",
                    "composite": {
                        "components": [
                            {"model": "mood", "weight": 10.0},
                            {"model": "mine", "weight": 0.1},
                            {"model": "judge", "clip": [0.0, 3.0]},
                            {"model": "there", "weight": -1.0},
                        ],
                        "mean": 1.0,
                        "deviation": 2.0,
                    },
                },
            ]
            async with service(*models) as here, AsyncRewardClient(here.grpc) as client:
                scores = await client.score(text_inputs(["q"] * 3, [GOOD, "raise", BAD]), model="all")
                kinds = {info.name: info.kind for info in await client.list_models()}
    mood = make_rule("sentiment").score("", GOOD, {})
    assert dict(scores[0].components) == pytest.approx(
        {"mood": mood, "mine": 16.0, "judge": 4.0, "there": 3.0}
    )
    assert scores[0].value == pytest.approx((10 * mood + 1.6 + 3.0 - 3.0 - 1.0) / 2)
    assert not scores[1].HasField("value")
    assert scores[1].error.code == "INTERNAL"
    assert "component mine: reward function" in scores[1].error.message
    assert "ValueError: of two lines" in scores[1].error.message
    assert scores[2].value < scores[0].value
    assert kinds["all"] == "composite"
    assert [kinds[name] for name in ("mood", "mine", "judge", "there")] == [
        "rule",
        "function",
        "judge",
        "remote",
    ]


@pytest.mark.parametrize("deed", ["raise", "exit", "segfault", "sleep", "sys.exit"])
async def test_a_misbehaving_function_harms_no_other_model(deed: str) -> None:
    """Its row has an error, the other models of the service answer meanwhile, and its next call is scored."""
    function = {"name": f"{FUNCTIONS}:misbehaves", "timeout_seconds": 3.0}
    models: list[dict[str, Any]] = [
        {"name": "mine", "function": function},
        {"name": "words", "rule": "length"},
    ]
    async with service(*models) as endpoints, AsyncRewardClient(endpoints.grpc) as client:
        bad = asyncio.create_task(client.score(text_inputs(["q"], [deed]), model="mine"))
        for _ in range(5):
            assert await client.values(["q"], ["two words"], model="words") == [2.0]
        [score] = await bad
        assert not score.HasField("value")
        assert score.error.code == ("DEADLINE_EXCEEDED" if deed == "sleep" else "INTERNAL")
        assert await client.values(["q"], ["abc"], model="mine") == [3.0]


async def test_sources_are_loaded_and_swapped_by_definition() -> None:
    """LoadModel takes a table's content; a function that cannot be imported is INVALID_ARGUMENT with the reason."""
    async with service() as endpoints, AsyncRewardClient(endpoints.grpc) as client:
        await client.load_model("mine", definition={"function": {"name": f"{FUNCTIONS}:length"}})
        assert await client.values(["q"], ["abc"], model="mine") == [3.0]
        with pytest.raises(InvalidArgumentError, match="No module named 'nowhere'"):
            await client.swap_model("mine", definition={"function": {"name": "nowhere:reward"}})
        assert await client.values(["q"], ["abc"], model="mine") == [3.0]
        with pytest.raises(NotFoundError, match="component other of both is not loaded"):
            composite = {"components": [{"model": "mine"}, {"model": "other"}]}
            await client.load_model("both", definition={"composite": composite})
        await client.load_model("other", definition={"rule": "length"})
        await client.load_model("both", definition={"composite": composite})
        assert await client.values(["q"], ["abc d"], model="both") == [7.0]
        await client.swap_model("mine", definition={"rule": "length"})
        assert await client.values(["q"], ["abc d"], model="both") == [4.0]


async def test_running_normalisation_stands_before_its_model_and_begins_anew_with_a_swap() -> None:
    """Listed first, loaded after; 1 then 3 words are 0 and 1; after a swap of the rule the count is fresh."""
    running: dict[str, Any] = {"name": "even", "running": {"model": "words", "single_replica": True}}
    async with (
        service(running, {"name": "words", "rule": "length"}) as endpoints,
        AsyncRewardClient(endpoints.grpc) as client,
    ):
        assert await client.values(["q"], ["one"], model="even") == [0.0]
        [score] = await client.score(text_inputs(["q"], ["one two three"]), model="even")
        assert (score.value, dict(score.components)) == (1.0, {"words": 3.0})
        await client.swap_model("words", definition={"rule": "length:target=9"})
        assert await client.values(["q"], ["one"], model="even") == [0.0]


# ------------------------------------------------------------------ remote


@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_a_remote_scores_as_the_other_service_does(scheme: str) -> None:
    """Values, digest and description are those of the other service, over both wires."""
    models = [{"name": "mood", "rule": "sentiment"}, {"name": "words", "rule": "length"}]
    async with service(*models) as other, remote(url_of(other, scheme), model="mood") as source:
        outcomes = await scored(source, row(GOOD), row(BAD), row("nothing"))
        assert source.digest == make_rule("sentiment").digest
        assert source.describe().input_kind == "text"
    rule = make_rule("sentiment")
    assert [outcome.value for outcome in outcomes] == [
        rule.score("", text, {}) for text in (GOOD, BAD, "nothing")
    ]
    assert {outcome.digest for outcome in outcomes} == {rule.digest}


@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_a_remotes_rows_keep_their_errors_and_columns(scheme: str) -> None:
    """A row that cannot be scored over there has that error here; columns and conversations travel."""
    conversation = ScoreRow(
        messages=(("system", "s"), ("user", "q")), completion="4", columns={"answer": "4"}
    )
    ids = ScoreRow(messages=(), completion="", ids=TokenIds(prompt=(1,), completion=(2,), fingerprint="f"))
    rendered = ScoreRow(messages=(("user", "<|user|>q"),), completion="4", rendered=True)
    async with (
        service({"name": "right", "rule": "numeric"}) as other,
        remote(url_of(other, scheme)) as source,
    ):
        outcomes = await scored(
            source,
            row("it is 4", answer="4"),
            row("4"),
            conversation,
            ids,
            rendered,
            row("5", "", answer="4"),
        )
    assert [outcome.value for outcome in outcomes] == [1.0, None, 1.0, None, None, 0.0]
    assert isinstance(error_of(outcomes[1]), InvalidInput)
    assert "column answer is missing" in str(outcomes[1].error)
    assert isinstance(error_of(outcomes[3]), Mismatch)
    assert "cannot be forwarded" in str(outcomes[4].error)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_a_remotes_components_come_along(scheme: str) -> None:
    """What the other service tells of its composite's parts is told here."""
    models: list[dict[str, Any]] = [
        {"name": "words", "rule": "length"},
        {"name": "sum", "composite": {"components": [{"model": "words", "weight": 3.0}]}},
    ]
    async with service(*models) as other, remote(url_of(other, scheme), model="sum") as source:
        [outcome] = await scored(source, row("two words"))
    assert outcome.value == 6.0
    assert dict(outcome.components) == {"words": 2.0}


async def test_a_remotes_answer_without_a_number_is_an_error() -> None:
    """A value, part or step that is missing, no finite number or too long for one is its row's error, never 0."""
    wrong: list[dict[str, Any]] = [
        {"value": 1.0, "components": {"a": None}},
        {"value": 1.0, "components": {"a": "7"}},
        {"value": 1.0, "steps": [0.5, None]},
        {"value": 1.0, "steps": [float("nan")]},
        {"value": 10**400},
        {"value": 1.0, "components": {"a": 10**400}},
    ]
    right = {"value": 2.0, "components": {"a": 3}, "steps": [1, 0.5], "truncated_tokens": 10**400}
    listed = Reply({"models": [{"name": "m", "digest": "d", "max_tokens": None, "gain": None}]})
    with HttpServer(in_turn(listed, Reply({"scores": [*wrong, right]}))) as server:
        async with remote(server.url) as source:
            *errors, good = await scored(source, *[row("a")] * 7)
    assert [error_of(one).status for one in errors] == ["DATA_LOSS"] * 6
    assert (good.value, dict(good.components), good.steps) == (2.0, {"a": 3.0}, (1.0, 0.5))
    assert good.truncated_tokens == 0


@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_scores_name_the_model_that_a_swap_brought(scheme: str) -> None:
    """After a swap over there the next score has the new digest, on its outcome and in what the service lists."""
    async with service({"name": "m", "rule": "length"}) as other, AsyncRewardClient(other.grpc) as admin:
        there = {"name": "there", "remote": {"url": url_of(other, scheme), "model": "m"}}
        async with service(there) as here, AsyncRewardClient(here.grpc) as client:
            [before] = await client.score(text_inputs(["q"], ["two words"]))
            await admin.swap_model("m", "rule:length:target=4")
            [after] = await client.score(text_inputs(["q"], ["two words"]))
            [info] = await client.list_models()
    assert (before.value, before.model_digest) == (2.0, make_rule("length").digest)
    assert (after.value, after.model_digest) == (-0.5, make_rule("length:target=4").digest)
    assert info.model.model_digest == after.model_digest


@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_no_score_of_another_model_than_the_pinned_one_is_taken(scheme: str) -> None:
    """Scored while it serves the pinned model; after a swap an error that names both, then and on opening."""
    pinned, other_digest = make_rule("length").digest, make_rule("length:target=4").digest
    told = f"serves {other_digest}, pinned is blake2b:{pinned}"
    async with service({"name": "m", "rule": "length"}) as other, AsyncRewardClient(other.grpc) as admin:
        url = url_of(other, scheme)
        async with remote(url, model="m", digest=f"blake2b:{pinned}") as source:
            assert [outcome.value for outcome in await scored(source, row("two words"))] == [2.0]
            await admin.swap_model("m", "rule:length:target=4")
            for outcome in await scored(source, row("two words"), row("three")):
                error = error_of(outcome)
                assert (error.status, str(error)) == ("FAILED_PRECONDITION", f"{url} {told}")
            with pytest.raises(Mismatch, match=told):
                await remote(url, digest=f"blake2b:{pinned}").__aenter__()
            await admin.swap_model("m", "rule:length")
            assert [outcome.value for outcome in await scored(source, row("two words"))] == [2.0]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_a_remote_that_is_killed_costs_errors_and_comes_back(scheme: str) -> None:
    """While the other service is away rows are UNAVAILABLE and its circuit opens; back on its port it scores again."""
    model = {"name": "m", "rule": "length"}
    async with service(model) as first:
        ports = {"port": int(first.grpc.rpartition(":")[2]), "http_port": int(first.http.rpartition(":")[2])}
        opening = remote(
            url_of(first, scheme), attempts=1, breaker_failures=2, breaker_seconds=0.2, timeout_seconds=5
        )
        source = await opening.__aenter__()
        assert [outcome.value for outcome in await scored(source, row("a b"))] == [2.0]
    errors = [error_of((await scored(source, row("a")))[0]) for _ in range(4)]
    assert all(isinstance(error, Unavailable) for error in errors)
    async with service(model, **ports):
        outcome = ScoreOutcome()
        async with asyncio.timeout(60):
            while outcome.value is None:
                [outcome] = await scored(source, row("a b c"))
        assert outcome.value == 3.0
    await opening.__aexit__(None, None, None)


async def test_an_open_circuit_asks_nobody() -> None:
    """After failures in a row rows are UNAVAILABLE at once and nothing reaches the other side."""
    listed = Reply({"models": [{"name": "m", "digest": "d"}]})
    with HttpServer(in_turn(listed, Reply(b"", 500))) as server:
        async with remote(server.url, breaker_failures=2, breaker_seconds=600) as source:
            outcomes = [(await scored(source, row("a")))[0] for _ in range(4)]
    assert [type(error_of(outcome)) for outcome in outcomes] == [ServiceError] * 2 + [Unavailable] * 2
    assert "has failed repeatedly" in str(outcomes[3].error)
    assert len(server.requests) == 3


async def test_retry_after_is_honoured_within_the_deadline() -> None:
    """A full service is asked again after its pause; one that asks for longer than there is time fails now."""
    listed = Reply({"models": [{"name": "m", "digest": "d"}]})
    full = Reply({"error": {"message": "full"}}, 429, (("retry-after", "0"),))
    later = Reply({"error": {"message": "full"}}, 429, (("retry-after", "3000"),))
    scores = Reply({"scores": [{"value": 1.5, "model_digest": "d"}]})
    with HttpServer(in_turn(listed, full, full, scores, later)) as server:
        async with remote(server.url) as source:
            assert [outcome.value for outcome in await scored(source, row("a"))] == [1.5]
            [outcome] = await scored(source, row("a"))
    assert error_of(outcome).status == "RESOURCE_EXHAUSTED"
    assert len(server.requests) == 5


async def test_the_callers_deadline_ends_a_silent_remote() -> None:
    """A caller's nearer deadline is the call's: its rows are DEADLINE_EXCEEDED, and the circuit stays closed."""
    released: Future[None] = Future()
    listed, scores = Reply({"models": [{"name": "m", "digest": "d"}]}), Reply({"scores": [{"value": 1.0}]})
    replies = in_turn(listed, scores)

    def slow(request: Any, handler: Any) -> Reply | None:
        if request.method == "POST":
            released.result(timeout=60)
        return replies(request, handler)

    with HttpServer(slow) as server:
        async with remote(server.url, breaker_failures=1) as source:
            deadline = asyncio.get_running_loop().time() + 0.5
            [late] = await scored(source, row("a"), caller=Caller(deadline=deadline))
            released.set_result(None)
            [fine] = await scored(source, row("a"))
    assert isinstance(error_of(late), Expired)
    assert fine.value == 1.0


@pytest.mark.parametrize(
    ("scores", "kinds"),
    [
        ([{"value": 1.0}], {"INTERNAL"}),  # one for two rows
        ({"value": 1.0}, {"INTERNAL"}),
        (None, {"INTERNAL"}),
        ([{"value": "1.0"}, {"value": None}], {"INTERNAL"}),
        ([{}, 7], {"INTERNAL"}),
        ([{"value": True}, {"error": "text"}], {"INTERNAL"}),
        ([{"value": 1e999}, {"value": float("nan")}], {"DATA_LOSS"}),
        ([{"error": {"code": "NOT_FOUND"}}, {"error": {"code": "NOT_FOUND", "message": "m"}}], {"NOT_FOUND"}),
    ],
)
async def test_a_remote_that_answers_nonsense_gives_errors(scores: Any, kinds: set[str]) -> None:
    """What is no score is an error of its row; too few scores are errors of all rows, never shifted."""
    listed = Reply({"models": [{"name": "m", "digest": "d"}]})
    with HttpServer(in_turn(listed, Reply({"scores": scores}))) as server:
        async with remote(server.url) as source:
            outcomes = await scored(source, row("a"), row("b"))
    assert {error_of(outcome).status for outcome in outcomes} == kinds


async def test_a_server_without_a_list_of_models_has_a_digest_of_its_url() -> None:
    """Somebody's own /v1/score needs no other page; equal URLs and models have equal digests."""
    scores = Reply({"scores": [{"value": 1.0}]})

    def answer(request: Any, handler: Any) -> Reply:
        return scores if request.method == "POST" else Reply(b"", 404)

    digests = []
    with HttpServer(answer) as server:
        for path, model in (("", "a"), ("", "a"), ("", "b"), ("/rewards/of-mine", "a")):
            async with remote(server.url + path, model=model) as source:
                [outcome] = await scored(source, row("c", "p"))
                assert outcome.value == 1.0
                assert outcome.digest == source.digest
                digests.append(source.digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert server.requests[-1].path == "/rewards/of-mine"
    assert server.requests[-1].content == {"model": "a", "inputs": [{"prompt": "p", "completion": "c"}]}


async def test_what_cannot_be_opened_is_told() -> None:
    """An unknown or ambiguous model, a silent port and a wrong URL fail on opening, with their reason."""
    async with service({"name": "a", "rule": "length"}, {"name": "b", "rule": "length"}) as other:
        for scheme in ("grpc", "http"):
            with pytest.raises(NotFound, match="has no model c; there are: a, b"):
                await remote(url_of(other, scheme), model="c").__aenter__()
            with pytest.raises(InvalidInput, match="several models, name one of a, b"):
                await remote(url_of(other, scheme)).__aenter__()
    for url in ("grpc://127.0.0.1:1", "http://127.0.0.1:1"):
        with pytest.raises(Unavailable):
            await remote(url, attempts=1, timeout_seconds=5).__aenter__()
    for url, fields in (
        ("127.0.0.1:1", {}),
        ("redis://127.0.0.1:1", {}),
        ("grpc://reward.example:1", {"key": "secret"}),
        ("http://reward.example:1", {"key": "secret"}),
    ):
        with pytest.raises(InvalidInput) as caught:
            await remote(url, **fields).__aenter__()
        assert "secret" not in str(caught.value)

"""What surrounds every route: errors of HTTP itself, access, admission, deadlines, admin, health, the page."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from services.common.access.gate import Gate
from services.common.access.identity import Identity
from services.common.access.keys import KeyTable, KnownKey, hash_of, new_key
from services.common.errors import Overloaded, Unavailable
from services.common.http_guard import HttpLimits
from services.reward.config import SourceSpec
from services.reward.http.calls import HttpSettings
from services.reward.rewards.base import RewardSource
from tests.unit.reward.http.served import Recorder, error_of, served, until

ONE = {"inputs": [{"completion": "x"}]}
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"inputs": "\xff\xfe"}',
        b'{"inputs": [{"completion": "\\ud800"}]}',
        b"[" * 100_000,
    ],
)
async def test_what_is_no_json_is_a_mistake(content: bytes) -> None:
    """Nothing, half of it, invalid UTF-8, half a surrogate pair, endless nesting: INVALID_ARGUMENT."""
    async with served({"hh": Recorder()}) as around:
        response = await around.client.post("/v1/score", content=content, headers=JSON)
        assert "no JSON" in error_of(response, 400, "INVALID_ARGUMENT")["message"]


async def test_errors_of_http_itself_have_the_same_form() -> None:
    """Unknown paths, wrong methods, other content types and compressed bodies."""
    async with served({"hh": Recorder()}) as around:
        client = around.client
        error_of(await client.get("/nowhere"), 404, "NOT_FOUND")
        error_of(await client.post("/v1/score/", json=ONE), 404, "NOT_FOUND")
        response = await client.get("/v1/score")
        error_of(response, 405, "UNIMPLEMENTED")
        assert response.headers["allow"] == "POST"
        error_of(await client.request("TRACE", "/healthz"), 405, "UNIMPLEMENTED")
        response = await client.get("/v1/admin/models/hh")
        error_of(response, 405, "UNIMPLEMENTED")
        assert response.headers["allow"] == "DELETE, PUT"
        form = {"content-type": "application/x-www-form-urlencoded"}
        error_of(await client.post("/v1/score", content=b"{}", headers=form), 415, "INVALID_ARGUMENT")
        error_of(await client.post("/v1/score"), 415, "INVALID_ARGUMENT")
        zipped = JSON | {"content-encoding": "gzip"}
        error_of(await client.post("/v1/score", content=b"{}", headers=zipped), 415, "INVALID_ARGUMENT")
        charset = {"content-type": "Application/JSON; charset=utf-8"}
        content = b'{"inputs": [{"completion": "x"}]}'
        assert (await client.post("/v1/score", content=content, headers=charset)).status_code == 200


async def test_a_body_beyond_the_cap_is_refused_while_it_is_read() -> None:
    """413 by its announced length, and by what comes where no length is announced; just the cap is accepted."""
    settings = HttpSettings(limits=HttpLimits(body_bytes=100))
    small = b'{"inputs": [{"completion": "' + b"x" * 69 + b'"}]}'
    assert len(small) == 101

    async def endless() -> Any:
        for _ in range(10_000):
            yield b" " * 64
        raise AssertionError("the body was read to its end")

    async with served({"hh": Recorder()}, settings=settings) as around:
        ask = around.client.post
        error_of(await ask("/v1/score", content=small, headers=JSON), 413, "RESOURCE_EXHAUSTED")
        assert (
            await ask("/v1/score", content=small.replace(b"xx", b"x", 1), headers=JSON)
        ).status_code == 200
        response = await ask("/v1/score", content=endless(), headers=JSON)
        error_of(response, 413, "RESOURCE_EXHAUSTED")
        assert "retry-after" not in response.headers


async def test_room_for_bodies_comes_back() -> None:
    """Refused and parsed bodies alike give back what they held: the hundredth is read like the first."""
    settings = HttpSettings(limits=HttpLimits(body_bytes=100))
    async with served({"hh": Recorder()}, settings=settings) as around:
        for _ in range(100):
            response = await around.client.post("/v1/score", content=b" " * 100, headers=JSON)
            error_of(response, 400, "INVALID_ARGUMENT")
        assert (await around.client.post("/v1/score", json=ONE)).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (Overloaded("full", retry_seconds=2.5), 429, "RESOURCE_EXHAUSTED", "3"),
        (Unavailable("gone"), 503, "UNAVAILABLE", "1"),
    ],
)
async def test_what_may_be_retried_says_when(error: Any, status: int, code: str, retry: str) -> None:
    """Retry-After in whole seconds, rounded up."""
    async with served({"hh": Recorder(refuses=error)}) as around:
        response = await around.client.post("/v1/score", json=ONE)
    error_of(response, status, code)
    assert response.headers["retry-after"] == retry


async def test_an_unexpected_error_is_an_incident() -> None:
    """500 with an id, and nothing of the error's own text."""

    class Broken(Recorder):
        def submit(self, rows: Any, caller: Any) -> Any:
            raise RuntimeError("secret detail")

    async with served({"hh": Broken()}) as around:
        response = await around.client.post("/v1/score", json=ONE)
    error = error_of(response, 500, "INTERNAL")
    assert "internal error" in error["message"] and "secret" not in response.text


async def test_deadlines() -> None:
    """X-Request-Timeout reaches the source, bounded by the service's own; what is late is 504."""
    source = Recorder()
    async with served({"hh": source}, settings=HttpSettings(deadline_seconds=100)) as around:
        began = time.monotonic()
        for header in ({"x-request-timeout": "5"}, {"x-request-timeout": "1e9"}, {}):
            await around.client.post("/v1/score", json=ONE, headers=header)
        for wrong in ("0", "-1", "nan", "soon"):
            response = await around.client.post("/v1/score", json=ONE, headers={"x-request-timeout": wrong})
            assert "x-request-timeout" in error_of(response, 400, "INVALID_ARGUMENT")["violations"]
        lasted = time.monotonic() - began
    for caller, seconds in zip(source.callers, (5, 100, 100), strict=True):
        assert caller.deadline is not None
        assert began + seconds <= caller.deadline <= began + seconds + lasted
    held = Recorder(held=True)
    async with served({"hh": held}) as around:
        response = await around.client.post("/v1/score", json=ONE, headers={"x-request-timeout": "0.05"})
        error_of(response, 504, "DEADLINE_EXCEEDED")
    assert held.futures[0].cancelled()


async def test_admission_is_bounded_and_health_is_outside() -> None:
    """Of three requests with room for two the third is 429 at once; health answers all the while."""
    source = Recorder(held=True)
    settings = HttpSettings(limits=HttpLimits(requests=2))
    async with served({"hh": source}, settings=settings) as around:
        waiting = [asyncio.ensure_future(around.client.post("/v1/score", json=ONE)) for _ in range(2)]
        await until(lambda: len(source.futures) == 2)
        refused = await around.client.post("/v1/score", json=ONE)
        error_of(refused, 429, "RESOURCE_EXHAUSTED")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await around.client.get("/healthz")).status_code == 200
        assert (await around.client.get("/readyz")).status_code == 200
        for future in source.futures:
            future.set_running_or_notify_cancel()
            future.set_exception(Unavailable("over"))
        assert [(await one).status_code for one in waiting] == [503, 503]
        error_of(await around.client.get("/v1/score"), 405, "UNIMPLEMENTED")


async def test_health_follows_the_services_life() -> None:
    """Alive always; ready only while serving; scoring is refused while starting and goes on while draining."""
    async with served({"hh": Recorder()}) as around:
        for stage, ready, score in (("starting", 503, 503), ("serving", 200, 200), ("draining", 503, 200)):
            around.stage = stage  # type: ignore[assignment]
            assert (await around.client.get("/healthz")).status_code == 200
            response = await around.client.get("/readyz")
            assert response.status_code == ready
            assert (await around.client.post("/v1/score", json=ONE)).status_code == score
        error_of(response, 503, "UNAVAILABLE")


async def test_callers_are_told_apart_by_address() -> None:
    """Without keys the peer's address stands for the client, not its connection."""
    source = Recorder()
    async with served({"hh": source}) as around:
        await around.client.post("/v1/score", json=ONE)
    assert [caller.client for caller in source.callers] == ["http:10.1.2.3"]


def gate_with(*identities: Identity) -> tuple[Gate, dict[str, dict[str, str]]]:
    """A gate with a key for each identity, and the header that presents it."""
    keys = {one.name: new_key() for one in identities}
    table = KeyTable([KnownKey(hash=hash_of(keys[one.name]), identity=one) for one in identities])
    return Gate(lambda: table), {name: {"authorization": f"Bearer {key}"} for name, key in keys.items()}


async def test_keys_scopes_models_and_quotas() -> None:
    """401 without a key, before the body is read; 403 for another scope or model; 429 beyond the quota."""
    gate, headers = gate_with(
        Identity(name="trainer", scopes=frozenset({"score"}), models=frozenset({"a"}), rows_per_minute=3),
        Identity(name="operator", scopes=frozenset({"admin"})),
    )
    source = Recorder()

    async def never() -> Any:
        raise AssertionError("the body of a stranger was read")
        yield b""

    async with served({"a": source, "b": Recorder()}, gate=gate) as around:
        ask, trainer, operator = around.client.post, headers["trainer"], headers["operator"]
        response = await ask("/v1/score", content=never(), headers=JSON)
        error_of(response, 401, "UNAUTHENTICATED")
        assert response.headers["www-authenticate"] == "Bearer"
        error_of(await ask("/v1/score", json=ONE, headers={"x-api-key": "tt_wrong"}), 401, "UNAUTHENTICATED")
        error_of(await around.client.get("/v1/models"), 401, "UNAUTHENTICATED")
        error_of(await ask("/v1/score", json=ONE, headers=operator), 403, "PERMISSION_DENIED")
        error_of(await ask("/v1/score", json=ONE | {"model": "b"}, headers=trainer), 403, "PERMISSION_DENIED")
        hidden = error_of(
            await ask("/v1/score", json=ONE | {"model": "z"}, headers=trainer), 403, "PERMISSION_DENIED"
        )
        assert "there are" not in hidden["message"]
        error_of(await around.client.delete("/v1/admin/models/a", headers=trainer), 403, "PERMISSION_DENIED")
        for _ in range(3):
            assert (await ask("/v1/score", json=ONE | {"model": "a"}, headers=trainer)).status_code == 200
        response = await ask("/v1/score", json=ONE | {"model": "a"}, headers=trainer)
        error_of(response, 429, "RESOURCE_EXHAUSTED")
        assert 1 <= int(response.headers["retry-after"]) <= 21
        assert (await around.client.get("/healthz")).status_code == 200
        assert (await around.client.get("/openapi.json")).status_code == 200
    assert {caller.client for caller in source.callers} == {"trainer"}


async def test_a_refused_call_costs_no_quota() -> None:
    """Rows that a full model has turned away are the key's to send again."""
    gate, headers = gate_with(Identity(name="t", scopes=frozenset({"score"}), rows_per_minute=1))
    full = Recorder(refuses=Overloaded("the queue is full", retry_seconds=3))
    async with served({"full": full, "a": Recorder()}, gate=gate) as around:
        for _ in range(3):
            response = await around.client.post(
                "/v1/score", json=ONE | {"model": "full"}, headers=headers["t"]
            )
            error_of(response, 429, "RESOURCE_EXHAUSTED")
            assert response.headers["retry-after"] == "3"
        response = await around.client.post("/v1/score", json=ONE | {"model": "a"}, headers=headers["t"])
    assert response.status_code == 200


async def test_a_key_of_some_models_hears_of_no_other() -> None:
    """Neither the listing nor an error names a model that the key may not use, a shadow or the only one included."""
    gate, headers = gate_with(Identity(name="t", scopes=frozenset({"score"}), models=frozenset({"a", "b"})))
    models = {"a": Recorder(), "b": Recorder(), "secret": Recorder()}
    async with served(models, gate=gate) as around:
        around.models.set_shadow("a", "secret")
        listed = await around.client.get("/v1/models", headers=headers["t"])
        assert [one["name"] for one in listed.json()["models"]] == ["a", "b"]
        unnamed = await around.client.post("/v1/score", json=ONE, headers=headers["t"])
        assert error_of(unnamed, 400, "INVALID_ARGUMENT")["message"].endswith("there are a, b")
    assert "secret" not in listed.text + unnamed.text
    async with served({"secret": Recorder()}, gate=gate) as around:
        only = await around.client.post("/v1/score", json=ONE, headers=headers["t"])
    assert only.status_code == 400
    assert "secret" not in only.text


async def test_other_names_of_this_machine_are_refused() -> None:
    """A page whose name was pointed at loopback is no caller; addresses and localhost are."""
    settings = HttpSettings(local_names_only=True)
    for host, status in (
        ("127.0.0.1:8053", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
    ):
        async with served({"hh": Recorder()}, settings=settings) as around:
            response = await around.client.post("/v1/score", json=ONE, headers={"host": host})
            assert response.status_code == status, host
    error_of(response, 403, "PERMISSION_DENIED")


async def test_models_come_and_go() -> None:
    """Load, swap, shadow and take away answer as gRPC's admin service does."""
    path = "/v1/admin/models"
    async with served({}) as around:
        client = around.client
        loaded = await client.post(path, json={"name": "mood", "path": "rule:sentiment"})
        assert loaded.status_code == 201
        first = loaded.json()["model"]
        assert (first["name"], first["kind"]) == ("mood", "rule")
        error_of(await client.post(path, json={"name": "mood", "path": "rule:length"}), 409, "ALREADY_EXISTS")
        swapped = await client.put(f"{path}/mood", json={"definition": {"rule": "length:target=3"}})
        assert swapped.status_code == 200
        assert swapped.json()["replaced_digest"] == first["digest"] != swapped.json()["model"]["digest"]
        await client.post(path, json={"name": "other", "definition": {"rule": "length"}})
        assert (await client.put(f"{path}/mood/shadow", json={"shadow": "other"})).status_code == 204
        listed = (await client.get("/v1/models")).json()["models"]
        assert [(one["name"], one["shadow"]) for one in listed] == [("mood", "other"), ("other", "")]
        error_of(await client.delete(f"{path}/other"), 400, "FAILED_PRECONDITION")
        assert (await client.put(f"{path}/mood/shadow", json={})).status_code == 204
        removed = await client.delete(f"{path}/other")
        assert (removed.status_code, removed.content) == (204, b"")
        error_of(await client.delete(f"{path}/other"), 404, "NOT_FOUND")
        error_of(await client.put(f"{path}/gone", json={"path": "rule:length"}), 404, "NOT_FOUND")
        scored = await client.post("/v1/score", json={"inputs": [{"completion": "abc"}]})
        assert scored.json()["scores"][0]["model_digest"] == swapped.json()["model"]["digest"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "a"}, "path"),
        ({"name": "a", "path": "x", "definition": {"rule": "length"}}, "path"),
        ({"name": "a", "definition": {}}, "definition"),
        ({"name": "a", "definition": {"rule": "length", "nonsense": 1}}, "nonsense"),
        ({"name": "a b", "path": "rule:length"}, "name"),
        ({"path": "rule:length"}, "name"),
        ({"name": "a", "path": 5}, "path"),
        ({"name": "a\n", "path": "rule:length"}, "name"),
        ({"name": "a", "path": "rule:"}, "definition"),
        ({"name": "a", "path": "function:"}, "function.name"),
        ({"name": "a", "path": "trl:"}, "function.name"),
        (
            {"name": "a", "definition": {"remote": {"url": "grpc://a:1", "timeout_seconds": 1e9}}},
            "remote.timeout_seconds",
        ),
    ],
)
async def test_what_cannot_be_loaded(body: dict[str, Any], field: str) -> None:
    """A definition that says nothing, too much or something unknown is refused, naming the field."""
    async with served({}) as around:
        response = await around.client.post("/v1/admin/models", json=body)
        assert field in error_of(response, 400, "INVALID_ARGUMENT")["violations"]


async def test_a_load_that_fails_leaves_nothing() -> None:
    """What the opener raises is the answer, and the name stays free."""

    def broken(definition: SourceSpec, name: str) -> RewardSource:
        raise Unavailable("the other service does not answer")

    async with served({}, opener=broken) as around:
        response = await around.client.post("/v1/admin/models", json={"name": "a", "path": "x"})
        error_of(response, 503, "UNAVAILABLE")
        assert (await around.client.get("/v1/models")).json()["models"] == []


def _references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*(_references(child) for child in node.values()))
    return set().union(*(_references(child) for child in node)) if isinstance(node, list) else set()


async def test_the_page_is_whole() -> None:
    """Every reference leads somewhere, every body has a schema with this service's bounds, every error its form."""
    async with served({"hh": Recorder()}, rows=8) as around:
        page = (await around.client.get("/openapi.json")).json()
        human = await around.client.get("/docs")
    schemas = page["components"]["schemas"]
    assert {reference.rpartition("/")[2] for reference in _references(page)} <= set(schemas)
    assert schemas["ScoreRequest"]["properties"]["inputs"]["maxItems"] == 8
    assert schemas["RewardRequest"]["properties"]["query"]["maxItems"] == 8
    expected = {"/v1/score", "/get_reward", "/classify", "/pooling", "/predict", "/slime", "/v1/models"}
    expected |= {"/healthz", "/readyz", "/v1/admin/models", "/v1/admin/models/{name}"}
    assert expected | {"/v1/admin/models/{name}/shadow"} == set(page["paths"])
    for path, methods in page["paths"].items():
        for method, operation in methods.items():
            assert ("requestBody" in operation) == (method in ("post", "put")), path
            for status, response in operation["responses"].items():
                assert status != "422"
                if int(status) >= 400:
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}
    assert "429" in page["paths"]["/v1/score"]["post"]["responses"]
    assert human.headers["content-type"].startswith("text/html")
    assert "/get_reward" in human.text
    assert "http://" not in human.text.replace("http://127.0.0.1", "") and "<script" not in human.text


async def test_answers_have_the_documented_form() -> None:
    """What the routes answer is what the page's schemas promise."""
    from services.reward.http.models import ModelsAnswer
    from services.reward.http.openrlhf import RewardAnswer
    from services.reward.http.score import ScoreAnswer
    from services.reward.http.vllm import ClassifyAnswer, PoolingAnswer

    async with served({"hh": Recorder()}) as around:
        ask = around.client.post
        answers: list[tuple[Any, httpx.Response]] = [
            (ScoreAnswer, await ask("/v1/score", json={"inputs": [{"completion": "x"}, {}]})),
            (RewardAnswer, await ask("/get_reward", json={"query": ["a"]})),
            (ClassifyAnswer, await ask("/classify", json={"input": "a"})),
            (PoolingAnswer, await ask("/pooling", json={"input": "a"})),
            (ModelsAnswer, await around.client.get("/v1/models")),
        ]
    for kind, response in answers:
        assert response.status_code == 200
        kind.model_validate_json(response.content, strict=True, extra="forbid")

"""The reward service over real HTTP on loopback, beside gRPC, with tiny random reward models and rules."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.common.access.keys import hash_of, new_key
from services.common.errors import ConfigError
from services.common.server import Endpoints, serving
from services.models.reward_model import load_reward_model
from services.models.scorer import ScoreText
from services.reward.application import RewardApplication
from services.reward.config import RewardConfig
from services.reward.rewards.base import ScoreOutcome
from tests.fakes.tiny_models import make_tiny_reward_model
from tests.unit.reward.http.served import Recorder, error_of, until
from trimtab.clients.reward import AsyncRewardClient, text_inputs

PROMPTS = ["How are you?", "Tell me of the sea.", "x"]
ANSWERS = ["I am wonderful, thank you!", "It is terrible and sad.", "The tide comes in. " * 20]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reward-http")
    return {
        "last": make_tiny_reward_model(root / "last", pooling="last", seed=1),
        "other": make_tiny_reward_model(root / "other", pooling="last", seed=3),
    }


def config_for(*models: tuple[str, str], server: dict[str, Any] | None = None, **fields: Any) -> RewardConfig:
    entries = [
        {"name": name, "rule": place[5:]} if place.startswith("rule:") else {"name": name, "path": place}
        for name, place in models
    ]
    return RewardConfig.model_validate(
        {
            "models": entries,
            "dtype": "float32",
            "device": "cpu",
            "threads": 1,
            "server": {"http_port": 0, **(server or {})},
            **fields,
        }
    )


@asynccontextmanager
async def running(
    config: RewardConfig,
) -> AsyncIterator[tuple[httpx.AsyncClient, Endpoints, RewardApplication]]:
    application = RewardApplication(config)
    async with (
        serving(config, application) as endpoints,
        httpx.AsyncClient(base_url=f"http://{endpoints.http}", timeout=60) as client,
    ):
        yield client, endpoints, application


def inputs_of(prompts: list[str], answers: list[str]) -> list[dict[str, str]]:
    return [{"prompt": one, "completion": two} for one, two in zip(prompts, answers, strict=True)]


async def test_http_scores_as_grpc_does(folders: dict[str, Path]) -> None:
    """The same numbers to the last bit, the same digest, the same count of what was cut."""
    async with running(config_for(("hh", str(folders["last"])))) as (client, endpoints, _):
        response = await client.post("/v1/score", json={"inputs": inputs_of(PROMPTS, ANSWERS)})
        async with AsyncRewardClient(endpoints.grpc) as other:
            scores = await other.score(text_inputs(PROMPTS, ANSWERS))
    assert response.status_code == 200, response.text
    for ours, theirs in zip(response.json()["scores"], scores, strict=True):
        assert ours["value"] == pytest.approx(theirs.value, abs=1e-6)
        assert ours["model_digest"] == theirs.model_digest
        assert ours["truncated_tokens"] == theirs.truncated_tokens
    assert response.json()["scores"][2]["truncated_tokens"] > 0


async def test_rendered_texts_are_read_as_they_stand(folders: dict[str, Path]) -> None:
    """What OpenRLHF, vLLM's and TEI's clients render scores like the conversation that it was made of."""
    model = load_reward_model(str(folders["last"]), dtype="float32", threads=1, device="cpu")
    prompt, answer = "How are you?", "Fine."
    text = f"<|user|>{prompt}<|end|><|assistant|>"
    [expected] = [
        reading.value for reading in model.read([model.encode(ScoreText((("user", prompt),), answer))])
    ]
    query = f"{text}{answer}<|end|>"
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    async with running(config_for(("hh", str(folders["last"])))) as (client, _, _):
        ask = client.post
        rewards = (await ask("/get_reward", json={"query": [query], "prompts": [text]})).json()["rewards"]
        classified = (await ask("/classify", json={"input": query})).json()["data"][0]["probs"]
        pooled = (await ask("/pooling", json={"messages": messages})).json()["data"][0]["data"]
        predicted = (await ask("/predict", json={"inputs": query})).json()[0]["score"]
        pair = (await ask("/predict", json={"inputs": [prompt, answer]})).json()[0]["score"]
        sample = {"prompt": text, "response": f"{answer}<|end|>", "label": None}
        slime = (await ask("/slime", json=sample)).json()
        ids = list(model.encode(ScoreText((("user", prompt),), answer)).ids)
        where = f"/classify?tokenizer_fingerprint={model.facts().tokenizer_fingerprint}"
        by_ids = (await ask(where, json={"input": ids})).json()["data"][0]["probs"]
    for value in (*rewards, *classified, *pooled, predicted, pair, slime, *by_ids):
        assert value == pytest.approx(expected, abs=1e-5)


async def test_ids_of_another_vocabulary_are_refused(folders: dict[str, Path]) -> None:
    """Ids past the vocabulary are that row's error, another tokenizer the whole call's."""
    async with running(config_for(("hh", str(folders["last"])))) as (client, _, _):
        listed = (await client.get("/v1/models")).json()["models"][0]
        request = {
            "inputs": [{"completion_ids": [5]}, {"completion_ids": [10**6]}, {"completion_ids": []}],
            "tokenizer_fingerprint": listed["tokenizer_fingerprint"],
        }
        scores = (await client.post("/v1/score", json=request)).json()["scores"]
        wrong = await client.post("/v1/score", json=request | {"tokenizer_fingerprint": "0" * 64})
        error_of(wrong, 400, "FAILED_PRECONDITION")
    assert "value" in scores[0]
    assert [score["error"]["code"] for score in scores[1:]] == ["INVALID_ARGUMENT", "INVALID_ARGUMENT"]


async def test_a_caller_that_hangs_up_is_not_scored(folders: dict[str, Path]) -> None:
    """When the connection ends the rows are given up: the source's future is cancelled."""
    held = Recorder(held=True)
    async with running(config_for()) as (_, endpoints, application):
        application._models.add("hh", held)
        _, writer = await asyncio.open_connection(*endpoints.http.rsplit(":", 1))
        body = json.dumps({"inputs": inputs_of(PROMPTS, ANSWERS)}).encode()
        head = "POST /v1/score HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        await until(lambda: bool(held.futures))
        writer.close()
        await until(held.futures[0].cancelled)
    assert len(held.rows) == 3


async def test_twenty_swaps_under_load(folders: dict[str, Path]) -> None:
    """No request fails, and every score is that of the digest its answer names."""
    inputs = {"model": "hh", "inputs": inputs_of(PROMPTS, ANSWERS)}
    known: dict[str, list[float]] = {}
    answers: list[list[dict[str, Any]]] = []
    over = asyncio.Event()
    async with running(config_for(("hh", str(folders["last"])))) as (client, _, _):
        for place in ("other", "last"):
            await client.put("/v1/admin/models/hh", json={"path": str(folders[place])})
            scores = (await client.post("/v1/score", json=inputs)).json()["scores"]
            known[scores[0]["model_digest"]] = [score["value"] for score in scores]

        async def load() -> None:
            while not over.is_set():
                response = await client.post("/v1/score", json=inputs)
                assert response.status_code == 200, response.text
                answers.append(response.json()["scores"])
                rewards = await client.post("/get_reward", json={"query": ANSWERS})
                assert rewards.status_code == 200, rewards.text

        loading = [asyncio.ensure_future(load()) for _ in range(4)]
        digests = set()
        for turn in range(20):
            place = "other" if turn % 2 == 0 else "last"
            response = await client.put("/v1/admin/models/hh", json={"path": str(folders[place])})
            assert response.status_code == 200, response.text
            digests.add(response.json()["model"]["digest"])
        over.set()
        await asyncio.gather(*loading)
    assert digests == set(known) and len(known) == 2
    for scores in answers:
        [digest] = {score["model_digest"] for score in scores}
        assert [score["value"] for score in scores] == pytest.approx(known[digest], abs=1e-6)


async def test_keys_guard_http_and_grpc_alike(tmp_path: Path) -> None:
    """With a keys file a request needs a key, also one that a URL carries; health needs none."""
    key = new_key()
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "trainer"\nhash = "{hash_of(key)}"\nscopes = ["score"]\n')
    keys.chmod(0o600)
    config = config_for(("mood", "rule:sentiment"), access={"keys_file": str(keys)})
    request = {"inputs": inputs_of(PROMPTS, ANSWERS)}
    async with running(config) as (client, endpoints, _):
        error_of(await client.post("/v1/score", json=request), 401, "UNAUTHENTICATED")
        bearer = {"authorization": f"Bearer {key}"}
        assert (await client.post("/v1/score", json=request, headers=bearer)).status_code == 200
        error_of(await client.delete("/v1/admin/models/mood", headers=bearer), 403, "PERMISSION_DENIED")
        by_url = f"http://any:{key}@{endpoints.http}/get_reward"
        assert (await client.post(by_url, json={"query": ["good"]})).status_code == 200
        assert (await client.get("/readyz")).status_code == 200


async def test_the_endpoints_file_names_the_http_address(tmp_path: Path) -> None:
    """With a port it is there and answers; without http_port there is no HTTP and no word of it."""
    path = tmp_path / "endpoints.json"
    async with running(config_for(("mood", "rule:sentiment"), endpoints_file=str(path))) as (
        client,
        where,
        _,
    ):
        assert json.loads(path.read_text())["http"] == where.http
        assert (await client.get("/readyz")).json() == {"status": "ready"}
    config = RewardConfig.model_validate({"endpoints_file": str(path)})
    async with serving(config, RewardApplication(config)) as endpoints:
        assert endpoints.http == ""
        assert set(json.loads(path.read_text())) == {"grpc", "health", "metrics"}


async def test_a_port_in_use_ends_the_start() -> None:
    """One clear line, as for the other ports, and nothing is left listening."""
    async with running(config_for()) as (_, endpoints, _):
        port = int(endpoints.http.rsplit(":", 1)[1])
        config = config_for(server={"http_port": port})
        with pytest.raises(ConfigError, match=f"^port {port} is in use$"):
            async with serving(config, RewardApplication(config)):
                pass


async def test_hostile_bodies_over_the_wire() -> None:
    """A body beyond the cap, a hundred thousand texts, invalid UTF-8: refused with the right code, service unharmed."""
    async with running(config_for(("mood", "rule:sentiment"), server={"max_message_mib": 1})) as (
        client,
        _,
        _,
    ):
        kind = {"content-type": "application/json"}
        many = {"inputs": [{"completion": "a"}] * 100_000}
        error_of(await client.post("/v1/score", json=many), 413, "RESOURCE_EXHAUSTED")
        few = b'{"inputs":[' + b"{}," * 99_999 + b"{}]}"
        error_of(await client.post("/v1/score", content=few, headers=kind), 400, "INVALID_ARGUMENT")
        broken = b'{"inputs": [{"completion": "\xc3\x28"}]}'
        error_of(await client.post("/v1/score", content=broken, headers=kind), 400, "INVALID_ARGUMENT")
        noise = os.urandom(4096)
        error_of(await client.post("/v1/score", content=noise, headers=kind), 400, "INVALID_ARGUMENT")
        scored = await client.post("/v1/score", json={"inputs": [{"completion": "good"}]})
        assert scored.status_code == 200 and "value" in scored.json()["scores"][0]


async def test_a_row_that_fails_alone_over_http() -> None:
    """One failing row leaves its neighbours their scores."""
    outcomes = [ScoreOutcome(value=1.0), ScoreOutcome(value=float("nan")), ScoreOutcome(value=2.0)]
    async with running(config_for()) as (client, _, application):
        application._models.add("hh", Recorder(outcomes))
        scores = (await client.post("/v1/score", json={"inputs": inputs_of(PROMPTS, ANSWERS)})).json()[
            "scores"
        ]
    assert [score.get("value") for score in scores] == [1.0, None, 2.0]
    assert scores[1]["error"]["code"] == "DATA_LOSS"

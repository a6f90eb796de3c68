"""The shapes that trainers speak, each with the request that the trainer itself makes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from services.common.errors import InvalidInput, Overloaded, ServiceError
from services.reward.rewards.base import ScoreOutcome, ScoreRow, TokenIds
from tests.unit.reward.http.served import FINGERPRINT, Recorder, error_of, served

PROMPT = "<|user|>How are you?<|end|><|assistant|>"
FOREIGN: list[tuple[str, dict[str, Any]]] = [
    ("/get_reward", {"query": ["a", "b"]}),
    ("/classify", {"input": ["a", "b"]}),
    ("/pooling", {"input": ["a", "b"]}),
    ("/predict", {"inputs": [["a"], ["b"]]}),
    ("/slime", {"prompt": "a", "response": "b", "label": None}),
]


async def test_openrlhf_as_its_executor_asks() -> None:
    """One query with its prompt and label: text as it stands, split after the prompt; rewards, scores, logs."""
    source = Recorder([ScoreOutcome(value=0.25, components={"hh": 1.0, "length": -3.0})])
    payload = {"query": [f"{PROMPT}Fine.<|end|>"], "prompts": [PROMPT], "labels": ["7"]}
    async with served({"hh": source}) as around:
        response = await around.client.post("/get_reward", json=payload)
    assert response.json() == {
        "rewards": [0.25],
        "scores": [0.25],
        "extra_logs": {"hh": [1.0], "length": [-3.0]},
    }
    assert source.rows == [
        ScoreRow(
            messages=(("user", PROMPT),), completion="Fine.<|end|>", columns={"label": "7"}, rendered=True
        )
    ]
    assert response.headers["x-trimtab-model-digest"] == "d1"


@pytest.mark.parametrize(
    ("digests", "told"), [(["d2", "d2"], "d2"), (["", ""], "d1"), (["d3", ""], "d1, d3")]
)
async def test_the_header_names_what_scored(digests: list[str], told: str) -> None:
    """The digest that the rows name, which the source's own may not be; each of them where they differ."""
    source = Recorder([ScoreOutcome(value=1.0, digest=digest) for digest in digests])
    async with served({"hh": source}) as around:
        response = await around.client.post("/get_reward", json={"query": ["a", "b"]})
    assert response.headers["x-trimtab-model-digest"] == told


async def test_openrlhf_of_older_releases_sends_queries_alone() -> None:
    """The whole query is the text."""
    source = Recorder()
    async with served({"hh": source}) as around:
        response = await around.client.post("/get_reward", json={"query": ["ab", "abc"]})
    assert response.json() == {"rewards": [2.0, 3.0], "scores": [2.0, 3.0], "extra_logs": {}}
    assert source.rows[0] == ScoreRow(messages=(), completion="ab", rendered=True)


async def test_openrlhf_with_several_urls_sends_empty_lists() -> None:
    """They are answered with empty lists and scored by nobody: an error would end the trainer's call."""
    source = Recorder()
    async with served({"hh": source}) as around:
        payload: dict[str, Any] = {"query": [], "prompts": [], "labels": []}
        response = await around.client.post("/get_reward", json=payload)
    assert response.status_code == 200
    assert response.json() == {"rewards": [], "scores": [], "extra_logs": {}}
    assert not source.callers


@pytest.mark.parametrize(("label", "column"), [("x", "x"), (3, "3"), ({"a": 1}, '{"a": 1}'), ("", "")])
async def test_labels_of_any_kind_become_a_column(label: object, column: str) -> None:
    """A label that is no text is its JSON; none is no column."""
    source = Recorder()
    async with served({"hh": source}) as around:
        await around.client.post("/get_reward", json={"query": ["a", "b"], "labels": [label, None]})
    assert [row.columns for row in source.rows] == [{"label": column}, {}]


async def test_openrlhf_prompt_that_is_not_the_beginning() -> None:
    """A causal model reads the query as it stands; whoever needs the answer alone gets an error, not a guess."""
    payload = {"query": ["cut prompt answer"], "prompts": ["long, cut prompt"]}
    source = Recorder()
    async with served({"hh": source}) as around:
        assert (await around.client.post("/get_reward", json=payload)).status_code == 200
    assert source.rows == [ScoreRow(messages=(), completion="cut prompt answer", rendered=True)]
    for other in (Recorder(kind="rule"), Recorder(kind="process"), Recorder(architecture="encoder")):
        async with served({"hh": other}) as around:
            response = await around.client.post("/get_reward", json=payload)
            error_of(response, 400, "INVALID_ARGUMENT")
        assert not other.rows


async def test_openrlhf_lists_of_different_lengths() -> None:
    """Refused, naming the list that does not fit."""
    async with served({"hh": Recorder()}) as around:
        payload = {"query": ["a", "b"], "prompts": ["a"]}
        response = await around.client.post("/get_reward", json=payload)
        assert error_of(response, 400, "INVALID_ARGUMENT")["violations"] == {"prompts": "2 entries"}


async def test_rendered_can_be_said() -> None:
    """?rendered=false: the texts have no template around them yet, so the model's own belongs there."""
    source = Recorder()
    payload = {"query": ["pa"], "prompts": ["p"]}
    async with served({"hh": source}) as around:
        await around.client.post("/get_reward?rendered=false", json=payload)
        sample = {"prompt": "p", "response": "a", "label": None}
        await around.client.post("/slime?rendered=false", json=sample)
        response = await around.client.post("/get_reward?rendered=perhaps", json=payload)
        error_of(response, 400, "INVALID_ARGUMENT")
    assert source.rows == [ScoreRow(messages=(("user", "p"),), completion="a")] * 2


async def test_vllm_classify_as_verl_asks() -> None:
    """verl's reward loop: one rendered text, the activation off; it reads data[-1].probs[-1]."""
    source = Recorder([ScoreOutcome(value=-4.5)])
    payload = {"model": "hh", "input": f"{PROMPT}Fine.<|end|>", "use_activation": False}
    async with served({"hh": source, "other": Recorder()}) as around:
        body = (await around.client.post("/classify", json=payload)).json()
    assert body["data"][-1]["probs"][-1] == -4.5
    assert body["data"] == [{"index": 0, "label": "LABEL_0", "probs": [-4.5], "num_classes": 1}]
    assert (body["object"], body["model"]) == ("list", "hh")
    assert body["id"].startswith("classify-")
    assert source.rows == [
        ScoreRow(messages=(), completion=f"{PROMPT}Fine.<|end|>", rendered=True, special_tokens=True)
    ]


@pytest.mark.parametrize("path", ["/classify", "/pooling"])
async def test_a_path_names_no_model(path: str) -> None:
    """vLLM's clients always send a hub's path as `model`: the only model then answers, or the one of ?model=."""
    payload = {"model": "Skywork/Skywork-Reward-V2", "input": "abc"}
    async with served({"hh": Recorder()}) as around:
        answer = await around.client.post(path, json=payload)
        assert (answer.status_code, answer.json()["model"]) == (200, "hh")
        error_of(await around.client.post(path, json=payload | {"model": "other"}), 404, "NOT_FOUND")
    async with served({"a": Recorder(), "b": Recorder()}) as around:
        named = await around.client.post(f"{path}?model=b", json=payload)
        assert named.json()["model"] == "b"
        unclear = error_of(await around.client.post(path, json=payload), 400, "INVALID_ARGUMENT")
        assert unclear["message"] == "model: expected a name; there are a, b"


async def test_special_tokens_are_the_models_unless_somebody_says_otherwise() -> None:
    """False leaves them out, and so does the model's own template, which writes some; pairs and messages too."""
    source = Recorder()
    async with served({"hh": source}) as around:
        for path, body in (
            ("/pooling", {"input": ["a"], "add_special_tokens": True}),
            ("/pooling", {"input": "a", "add_special_tokens": False}),
            ("/classify?rendered=false", {"input": "a"}),
            ("/predict?rendered=false", {"inputs": "a"}),
            ("/predict?rendered=true", {"inputs": ["p", "a"]}),
            ("/classify", {"messages": [{"role": "assistant", "content": "a"}]}),
        ):
            assert (await around.client.post(path, json=body)).status_code == 200
    assert [row.special_tokens for row in source.rows] == [True, *[False] * 5]
    assert [row.rendered for row in source.rows] == [True, True, False, False, True, False]


async def test_vllm_messages_and_ids() -> None:
    """A conversation gets the model's own template; ids are taken with their tokenizer's fingerprint."""
    source = Recorder()
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "u"}]},
        {"role": "assistant", "content": "abc"},
    ]
    async with served({"hh": source}) as around:
        ask = around.client.post
        assert (await ask("/classify", json={"messages": messages})).json()["data"][0]["probs"] == [3.0]
        where = f"/pooling?tokenizer_fingerprint={FINGERPRINT}"
        assert (await ask(where, json={"input": [[1, 2], [3]]})).status_code == 200
        assert (await ask(where, json={"input": [4, 5]})).status_code == 200
        error_of(await ask("/pooling", json={"input": [4, 5]}), 400, "FAILED_PRECONDITION")
        error_of(await ask("/pooling", json={}), 400, "INVALID_ARGUMENT")
        image = [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]
        error_of(await ask("/classify", json={"messages": image}), 400, "INVALID_ARGUMENT")
        base64 = {"input": "a", "encoding_format": "base64"}
        error_of(await ask("/pooling", json=base64), 400, "INVALID_ARGUMENT")
    assert source.rows[0] == ScoreRow(messages=(("user", "u"),), completion="abc")
    assert [row.ids for row in source.rows[1:]] == [
        TokenIds(prompt=(), completion=ids, fingerprint=FINGERPRINT) for ids in ((1, 2), (3,), (4, 5))
    ]


async def test_vllm_pooling_has_steps_where_there_are_steps() -> None:
    """A process reward model gives [[step], …] for each text, any other [score]; probabilities stay what they are."""
    outcomes = [ScoreOutcome(value=0.5, steps=(0.9, 0.5)), ScoreOutcome(value=2.0)]
    async with served({"prm": Recorder(outcomes, kind="process")}) as around:
        body = (await around.client.post("/pooling", json={"model": "prm", "input": ["a", "b"]})).json()
        active = {"model": "prm", "input": ["a", "b"], "use_activation": True}
        probable = (await around.client.post("/pooling", json=active)).json()
        classes = (await around.client.post("/classify", json=active)).json()
        tei = {"inputs": [["a"], ["b"]], "raw_scores": False}
        predicted = (await around.client.post("/predict?model=prm", json=tei)).json()
    sigmoid = pytest.approx(1 / (1 + math.exp(-2.0)))
    assert [one["data"] for one in body["data"]] == [[[0.9], [0.5]], [2.0]]
    assert [one["data"] for one in probable["data"]] == [[[0.9], [0.5]], [sigmoid]]
    assert [one["probs"] for one in classes["data"]] == [[0.5], [sigmoid]]
    assert [one[0]["score"] for one in predicted] == [0.5, sigmoid]
    assert [one["object"] for one in body["data"]] == ["pooling", "pooling"]


async def test_tei_predict_texts_pairs_and_batches() -> None:
    """A text or a pair gives one list of predictions, a batch a list of such; a pair is prompt and answer."""
    source = Recorder()
    async with served({"hh": source}) as around:
        ask = around.client.post
        assert (await ask("/predict", json={"inputs": "abc"})).json() == [{"score": 3.0, "label": "LABEL_0"}]
        pair = await ask("/predict", json={"inputs": ["p", "ab"], "raw_scores": True})
        assert pair.json() == [{"score": 2.0, "label": "LABEL_0"}]
        batch = await ask("/predict", json={"inputs": [["a"], ["p", "abcd"]]})
        assert batch.json() == [[{"score": 1.0, "label": "LABEL_0"}], [{"score": 4.0, "label": "LABEL_0"}]]
        mistakes: list[Any] = [[], [[]], ["a", "b", "c"], [["a", "b", "c"]], [["a"], "b"], 5]
        for wrong in mistakes:
            error_of(await ask("/predict", json={"inputs": wrong}), 400, "INVALID_ARGUMENT")
    assert source.rows == [
        ScoreRow(messages=(), completion="abc", rendered=True, special_tokens=True),
        ScoreRow(messages=(("user", "p"),), completion="ab"),
        ScoreRow(messages=(), completion="a", rendered=True, special_tokens=True),
        ScoreRow(messages=(("user", "p"),), completion="abcd"),
    ]


async def test_what_truncate_false_means() -> None:
    """As at TEI, an input that is too long is then an error; otherwise it is cut."""
    source = Recorder([ScoreOutcome(value=1.0, truncated_tokens=5)])
    async with served({"hh": source}) as around:
        assert (await around.client.post("/predict", json={"inputs": "a"})).status_code == 200
        response = await around.client.post("/predict", json={"inputs": "a", "truncate": False})
        assert "5 tokens too long" in error_of(response, 400, "INVALID_ARGUMENT")["message"]


@pytest.mark.parametrize("value", [-1000.0, -2.0, 0.0, 0.5, 800.0])
async def test_activation_only_where_it_is_asked_for(value: float) -> None:
    """Scores are raw; who asks for probabilities gets the sigmoid, also of large numbers."""
    expected = 1 / (1 + math.exp(-value)) if value > -700 else 0.0
    async with served({"hh": Recorder([ScoreOutcome(value=value)])}) as around:
        ask = around.client.post
        raw = (await ask("/classify", json={"input": "a"})).json()["data"][0]["probs"]
        active = (await ask("/classify", json={"input": "a", "use_activation": True})).json()["data"][0][
            "probs"
        ]
        tei_raw = (await ask("/predict", json={"inputs": "a"})).json()[0]["score"]
        tei_active = (await ask("/predict", json={"inputs": "a", "raw_scores": False})).json()[0]["score"]
    assert raw == [value] and tei_raw == value
    assert active == [pytest.approx(expected, abs=1e-12)] and tei_active == active[0]


async def test_slime_gets_a_number() -> None:
    """The whole answer is the reward; with ?key= it is an object, for runs with a reward key."""
    source = Recorder()
    sample = {"prompt": PROMPT, "response": "abc", "label": "7"}
    chat = {"prompt": [{"role": "user", "content": "u"}], "response": "abcd", "label": None}
    async with served({"hh": source}) as around:
        assert (await around.client.post("/slime", json=sample)).json() == 3.0
        assert (await around.client.post("/slime?key=score", json=chat)).json() == {"score": 4.0}
    assert source.rows == [
        ScoreRow(messages=(("user", PROMPT),), completion="abc", columns={"label": "7"}, rendered=True),
        ScoreRow(messages=(("user", "u"),), completion="abcd"),
    ]


@pytest.mark.parametrize(("path", "body"), FOREIGN)
@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [
        (ScoreOutcome(error=ServiceError("the function slept")), 500, "INTERNAL"),
        (ScoreOutcome(error=InvalidInput("no label", {"label": "a number"})), 400, "INVALID_ARGUMENT"),
        (ScoreOutcome(error=Overloaded("full", retry_seconds=7)), 429, "RESOURCE_EXHAUSTED"),
        (ScoreOutcome(value=math.nan), 500, "DATA_LOSS"),
        (ScoreOutcome(), 500, "DATA_LOSS"),
    ],
)
async def test_a_row_without_a_score_fails_the_call(
    path: str, body: dict[str, Any], outcome: ScoreOutcome, status: int, code: str
) -> None:
    """These shapes have no place for a row's error: never null, 0 or NaN in the place of a reward."""
    first = [] if path == "/slime" else [ScoreOutcome(value=1.0)]
    async with served({"hh": Recorder([*first, outcome])}) as around:
        response = await around.client.post(path, json=body)
    error = error_of(response, status, code)
    assert f"[{len(first)}]: " in error["message"]
    if status == 429:
        assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize(("path", "body"), FOREIGN)
async def test_which_model(path: str, body: dict[str, Any]) -> None:
    """?model= names it; without, it is the only one there is."""
    first, second = Recorder(), Recorder()
    async with served({"a": first, "b": second}) as around:
        assert (await around.client.post(f"{path}?model=b", json=body)).status_code == 200
        error_of(await around.client.post(path, json=body), 400, "INVALID_ARGUMENT")
        error_of(await around.client.post(f"{path}?model=c", json=body), 404, "NOT_FOUND")
        too_long = await around.client.post(f"{path}?model={'c' * 64}", json=body)
        error_of(too_long, 400, "INVALID_ARGUMENT")
    assert not first.rows and second.rows


@pytest.mark.parametrize(("path", "body"), FOREIGN)
async def test_fields_that_others_send_besides_are_left_aside(path: str, body: dict[str, Any]) -> None:
    """A trainer's next release may send more."""
    async with served({"hh": Recorder()}) as around:
        response = await around.client.post(path, json=body | {"user": "u", "priority": 0, "metadata": {}})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", {"input": ""}),
        ("/predict", {"inputs": ""}),
        ("/slime", {"prompt": "", "response": "", "label": None}),
        ("/get_reward", {"query": [""]}),
    ],
)
async def test_nothing_is_no_text(path: str, body: dict[str, Any]) -> None:
    """An empty input is the caller's mistake, everywhere."""
    async with served({"hh": Recorder()}) as around:
        error_of(await around.client.post(path, json=body), 400, "INVALID_ARGUMENT")

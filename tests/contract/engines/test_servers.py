"""What engines behind a URL make of a server's trouble, and of configurations that do not fit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tokenizers.processors import TemplateProcessing
from transformers import Gemma3Config, Gemma3TextConfig

from services.common.errors import ConfigError, Corrupted, InvalidInput, Overloaded, TrimtabError, Unavailable
from services.common.spec.service import ModelSpec
from services.models.logprobs import completion_logprobs
from services.models.manifest import Manifest, Version, entries_of, whole_digest
from services.policy.config import EngineSpec, PolicyConfig
from services.policy.engines import remote
from services.policy.engines.base import Draft, Request, Sampling
from services.policy.engines.choice import needed, open_engine
from services.policy.engines.remote import JsonServer, RemoteModel, limit_of, seed_of
from services.policy.engines.tgi_engine import TgiEngine
from services.policy.generation import Policy, Update
from tests.contract.engines.conftest import CONTEXT
from tests.fakes.engine_servers import CompletionServer, TgiServer
from tests.fakes.http_server import HttpServer, Reply
from tests.fakes.http_server import Request as HttpRequest
from tests.fakes.tiny_models import make_tiny_causal, tiny_tokenizer
from tests.fakes.tiny_runs import loaded_from


@pytest.fixture
def model(folders: dict[str, Path]) -> RemoteModel:
    return RemoteModel(ModelSpec(path=str(folders["llama"])))


@pytest.fixture
def tgi(folders: dict[str, Path], model: RemoteModel) -> Iterator[tuple[TgiEngine, TgiServer]]:
    answering = TgiServer(loaded_from(folders["llama"]), model.ends)
    with HttpServer(answering) as server:
        engine = TgiEngine(model, server.url, max_rows=2)
        yield engine, answering
        engine.close()


def ask(model: RemoteModel, text: str = "Once", sampling: Sampling | None = None) -> list[Request]:
    ids = np.array(model.tokenizer(text)["input_ids"], np.int32)
    return [Request(prompt_ids=ids, sampling=sampling or Sampling(temperature=0, max_new_tokens=4))]


def get(url: str, path: str) -> None:
    server = JsonServer("vllm", url)
    try:
        server.get(path)
    finally:
        server.close()


def run(engine: TgiEngine, requests: list[Request]) -> list[Draft]:
    return engine.generate(requests, threading.Event())


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (422, "validation", InvalidInput),
        (424, "generation", Unavailable),
        (424, "incomplete_generation", Unavailable),
    ],
)
def test_tgi_errors_are_ours(
    tgi: tuple[TgiEngine, TgiServer], model: RemoteModel, status: int, kind: str, error: type[TrimtabError]
) -> None:
    """The caller's mistake is one, what broke over there is not; the server's words are kept."""
    engine, server = tgi
    server.failures = [(status, kind, "as documented")]
    with pytest.raises(error, match="TGI: as documented"):
        run(engine, ask(model))


def test_a_full_server_is_asked_again(
    tgi: tuple[TgiEngine, TgiServer], model: RemoteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """429 twice, then an answer: the completion comes. One that stays full is an Overloaded in the end."""
    engine, server = tgi
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.001)
    server.failures = [(429, "overloaded", "Model is overloaded")] * 2
    [draft] = run(engine, ask(model))
    assert draft.finish is not None
    assert server.failures == []
    monkeypatch.setattr(remote, "_LONGEST_PAUSE_SECONDS", 0.002)
    server.failures = [(429, "overloaded", "Model is overloaded")] * 9
    with pytest.raises(Overloaded, match="Model is overloaded"):
        run(engine, ask(model))


def test_a_server_that_is_away_is_unavailable(model: RemoteModel) -> None:
    """Nobody listens: one line that says so, from each kind of client."""
    with pytest.raises(Unavailable, match="TGI does not answer"):
        run(TgiEngine(model, "http://127.0.0.1:9", max_rows=1), ask(model))
    with pytest.raises(Unavailable, match="vllm does not answer"):
        get("http://127.0.0.1:9", "/v1/models")


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (Reply({"error": {"message": "too long"}}, 400), InvalidInput, "vllm answered 400: too long"),
        (Reply({"detail": "no room"}, 429), Overloaded, "vllm answered 429: no room"),
        (Reply(b"<h1>oops</h1>", 502), Unavailable, "vllm answered 502: <h1>oops</h1>"),
    ],
)
def test_json_servers_errors(reply: Reply, error: type[TrimtabError], message: str) -> None:
    """By the status; the message is found wherever such servers put it."""
    with HttpServer(lambda *_: reply) as server, pytest.raises(error, match=message):
        get(server.url, "/")


def test_temperature_changes_which_logprobs_there_are(
    tgi: tuple[TgiEngine, TgiServer], model: RemoteModel, folders: dict[str, Path]
) -> None:
    """TGI's log-probs are after temperature: at 0.7 they are the sampled ones, and raw ones are not there."""
    engine, _ = tgi
    requests = ask(model, sampling=Sampling(temperature=0.7, seed=2, max_new_tokens=6))
    [draft] = run(engine, requests)
    loaded = loaded_from(folders["llama"])
    pairs = [(requests[0].prompt_ids, draft.token_ids)]
    [expected] = completion_logprobs(loaded.model, pairs, temperature=0.7, token_budget=100)
    np.testing.assert_allclose(draft.sampled_logprobs, expected, atol=2e-5, rtol=0)
    assert len(draft.raw_logprobs) == 0


def test_logprobs_of_a_text(
    tgi: tuple[TgiEngine, TgiServer], model: RemoteModel, folders: dict[str, Path]
) -> None:
    """decoder_input_details gives the reference log-probs of a text's tokens but the first."""
    ids, logprobs = tgi[0].prompt_logprobs("Once upon")
    whole = np.array(model.tokenizer("Once upon")["input_ids"], np.int32)
    assert ids.tolist() == whole[1:].tolist()
    loaded = loaded_from(folders["llama"])
    [expected] = completion_logprobs(
        loaded.model, [(whole[:1], whole[1:])], temperature=1.0, token_budget=100
    )
    np.testing.assert_allclose(logprobs, expected, atol=2e-5, rtol=0)


def test_ids_that_are_no_texts_encoding_are_refused(
    tgi: tuple[TgiEngine, TgiServer], model: RemoteModel
) -> None:
    """Half a character cannot be sent as text: refused, not sent as something else."""
    half = model.tokenizer("ü")["input_ids"][:1]
    request = Request(prompt_ids=np.array(half, np.int32), sampling=Sampling(max_new_tokens=2))
    with pytest.raises(InvalidInput, match="not the encoding of any"):
        run(tgi[0], [request])


def test_a_text_is_sent_without_what_the_server_puts_before_it(tmp_path: Path) -> None:
    """Where the tokenizer begins each text with a token, the server's does too; ids without it are no text's."""
    tokenizer = tiny_tokenizer(extra=("<|bos|>",))
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    first = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", first)]
    )
    model = RemoteModel(ModelSpec(path=str(make_tiny_causal(tmp_path / "begins", tokenizer=tokenizer))))
    bare = model.tokenizer("<|user|>Once", add_special_tokens=False)["input_ids"]
    assert model.tokenizer("Once")["input_ids"][0] == first
    assert model.text_of([first, *bare]) == "<|user|>Once"
    assert model.text_of([first, first, *bare]) == "<|bos|><|user|>Once"
    with pytest.raises(InvalidInput, match="not the encoding of any"):
        model.text_of(bare)


def test_a_text_is_sent_without_what_the_server_puts_after_it(tmp_path: Path) -> None:
    """As T5's tokenizer ends each text with a token, the server's does."""
    tokenizer = tiny_tokenizer()
    last = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {tokenizer.eos_token}", special_tokens=[(tokenizer.eos_token, last)]
    )
    model = RemoteModel(ModelSpec(path=str(make_tiny_causal(tmp_path / "ends", tokenizer=tokenizer))))
    bare = model.tokenizer("Once", add_special_tokens=False)["input_ids"]
    assert model.text_of([*bare, last]) == "Once"
    assert model.text_of([*bare, last, last]) == f"Once{model.tokenizer.eos_token}"
    with pytest.raises(InvalidInput, match="not the encoding of any"):
        model.text_of(bare)


def test_facts_of_a_model_that_sees_as_well(tmp_path: Path) -> None:
    """Vocabulary and context are its language's."""
    tokenizer = tiny_tokenizer()
    text = Gemma3TextConfig(vocab_size=len(tokenizer), max_position_embeddings=99)
    Gemma3Config(text_config=text).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    facts = RemoteModel(ModelSpec(path=str(tmp_path))).facts
    assert (facts.vocabulary_size, facts.context_length) == (len(tokenizer), 99)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0.7), Sampling(top_k=3), Sampling(top_p=0.5), Sampling(min_new_tokens=2)],
)
def test_vllm_refuses_what_it_has_no_logprobs_for(
    folders: dict[str, Path], model: RemoteModel, sampling: Sampling
) -> None:
    """Its log-probs are of one distribution: samplings for which both would differ are refused."""
    with HttpServer(CompletionServer(loaded_from(folders["llama"]), model.ends)) as server:
        engine, _ = open_engine(config(folders["llama"], kind="vllm", url=server.url))
        with pytest.raises(InvalidInput, match="temperature 0 or 1"):
            engine.generate(ask(model, sampling=sampling), threading.Event())
        engine.close()


def test_a_server_that_only_says_it_reloaded_serves_nobody(
    folders: dict[str, Path], model: RemoteModel, tmp_path: Path
) -> None:
    """The worst that can happen to a run, so a few tokens are held against a direct pass after every reload."""
    served = CompletionServer(loaded_from(folders["llama"]), model.ends, deaf=True)
    with HttpServer(served) as server:
        asked = config(folders["llama"], kind="vllm", url=server.url, weights_folder=str(tmp_path))
        engine, _ = open_engine(asked)
        old = {name: tensor.clone() for name, tensor in engine.weights().items()}
        new = {name: tensor + 0.5 * torch.randn(tensor.shape) for name, tensor in old.items()}
        with pytest.raises(Corrupted, match="did not take over the weights"):
            engine.load_weights(new)
        with pytest.raises(Corrupted, match="nothing is generated"):
            engine.generate(ask(model), threading.Event())
        served.deaf = False
        engine.load_weights(old)
        assert engine.generate(ask(model), threading.Event())
        assert not list(tmp_path.iterdir())
        engine.close()


def test_replicas_that_share_a_folder_have_names_of_their_own_in_it(
    folders: dict[str, Path], model: RemoteModel, tmp_path: Path
) -> None:
    """Each with a server of its own: none removes what another's is about to read."""
    served = CompletionServer(loaded_from(folders["llama"]), model.ends)
    with HttpServer(served) as server:
        asked = config(folders["llama"], kind="vllm", url=server.url, weights_folder=str(tmp_path))
        engine, _ = open_engine(asked.model_copy(update={"name": "policy/2"}))
        engine.load_weights(engine.weights())
        assert served.weight_version == "weights-policy%2F2-0"
        engine.close()


def test_vllm_is_told_to_stop_at_special_tokens_too(folders: dict[str, Path], model: RemoteModel) -> None:
    """Its text, in which it looks for stop strings, would be without them."""
    with HttpServer(CompletionServer(loaded_from(folders["llama"]), model.ends)) as server:
        engine, _ = open_engine(config(folders["llama"], kind="vllm", url=server.url))
        engine.generate(ask(model), threading.Event())
        asked = [each.content for each in server.requests if each.path == "/v1/completions"]
        assert [each["skip_special_tokens"] for each in asked] == [False]
        engine.close()


@pytest.mark.parametrize(
    ("path", "status"), [("/collective_rpc", 504), ("/update_weight_version", 404), ("/resume", 503)]
)
def test_a_reload_that_breaks_off_is_tried_again_before_anything_is_generated(
    folders: dict[str, Path], model: RemoteModel, tmp_path: Path, path: str, status: int
) -> None:
    """The server may serve either weights: no token gets the old version's name, and the folder stays to be read."""
    answering = CompletionServer(loaded_from(folders["llama"]), model.ends)
    broken: list[str] = [path]

    def answer(request: HttpRequest, handler: BaseHTTPRequestHandler) -> Reply:
        reply = answering(request, handler)
        return Reply({"detail": "broken"}, status) if request.path in broken else reply

    with HttpServer(answer) as server:
        asked = config(folders["llama"], kind="vllm", url=server.url, weights_folder=str(tmp_path))
        policy = Policy(*open_engine(asked))
        new = {name: tensor + 0.5 for name, tensor in policy.engine.weights().items()}
        entries = entries_of(new)
        policy.offer(Update(Manifest(Version(1, 1, whole_digest(entries)), entries), new))
        for _ in range(3):
            with pytest.raises(Unavailable, match="broken"):
                policy.generate(ask(model), threading.Event())
        with pytest.raises(Corrupted, match="nothing is generated"):
            policy.engine.generate(ask(model), threading.Event())
        assert "/v1/completions" not in answering.calls
        assert 0 < len(list(tmp_path.iterdir())) <= 2
        broken.clear()
        _, [[(start, made_by)]] = policy.generate_noted(ask(model), threading.Event())
        assert (start, made_by.step) == (0, 1)
        assert not list(tmp_path.iterdir())
        policy.engine.close()


def test_seeds_for_servers_depend_on_all_three() -> None:
    """Seed, completion and place of the continuation each give another number; it fits 63 bits."""
    prompt, token = np.array([1], np.int32), Draft(token_ids=np.array([1], np.int32))
    seeds = [
        seed_of(Request(prompt_ids=prompt, sampling=Sampling(seed=seed), index=index, draft=draft))
        for seed in (0, 1, 2**64 - 1)
        for index in (0, 1)
        for draft in (Draft(), token)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def config(folder: Path, **engine: object) -> PolicyConfig:
    return PolicyConfig.model_validate(
        {"model": {"path": str(folder), "dtype": "float32", "threads": 1}, "engine": engine}
    )


def test_an_engine_that_cannot_do_what_a_run_asks_does_not_start(folders: dict[str, Path]) -> None:
    """A stage needs ids and both log-probs, a learner's weights somebody who takes them, and what is named counts."""
    plain = config(folders["llama"], kind="tgi", url="http://127.0.0.1:9", require=["seeds"])
    assert needed(plain) == {"seeds"}
    assert open_engine(plain)[0].name == "tgi"
    staged = plain.model_copy(update={"queue": object(), "weights": object()})
    with pytest.raises(ConfigError, match=r"tgi cannot .* raw_logprobs, token_ids, weight_updates"):
        open_engine(staged)
    with (
        pytest.raises(ConfigError, match=r"openai cannot .* logits_processors"),
        HttpServer(models) as server,
    ):
        open_engine(config(folders["llama"], kind="openai", url=server.url, require=["logits_processors"]))


@pytest.mark.parametrize(("text", "sent"), [("s3cret\n", "Bearer s3cret"), ("  ", None), (None, None)])
def test_the_servers_key_may_be_a_file(
    folders: dict[str, Path], tmp_path: Path, text: str | None, sent: str | None
) -> None:
    """Its line is sent as the key; a file that is empty or not there is told at start."""
    file = tmp_path / "key"
    if text is not None:
        file.write_text(text)
    with HttpServer(models) as server:
        settings = config(folders["llama"], kind="openai", url=server.url, key_file=str(file))
        if sent is None:
            with pytest.raises(ConfigError, match=r"engine\.key_file: .*(is empty|cannot be read)"):
                open_engine(settings)
            return
        open_engine(settings)
        assert server.requests[0].headers["Authorization"] == sent


def models(*_: object) -> Reply:
    return Reply({"data": [{"id": "one"}]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "vllm"}, "the vllm engine needs a url or a command"),
        ({"kind": "tgi"}, "the tgi engine needs a url"),
        ({"kind": "tgi", "command": ["tgi"]}, "command is for the vllm engine"),
        ({"kind": "vllm", "command": ["vllm"], "url": "http://a"}, "in place of a url"),
        ({"kind": "transformers", "url": "http://a"}, "runs in process"),
        (
            {"kind": "openai", "url": "http://a", "weights_folder": "/w"},
            "weights_folder is for the vllm engine",
        ),
    ],
)
def test_engines_that_are_no_whole(fields: dict[str, object], message: str) -> None:
    """A table that names too little or too much says which."""
    with pytest.raises(ValidationError, match=message):
        EngineSpec.model_validate(fields)


def test_a_model_without_a_context_length_has_no_bound(model: RemoteModel) -> None:
    """Mamba's configuration names none: the sampling's own limit holds, never a negative one."""
    request = replace(ask(model)[0], draft=Draft(token_ids=np.zeros(1, np.int32)))
    assert limit_of(request, replace(model.facts, context_length=0)) == 3
    short = replace(model.facts, context_length=len(request.prompt_ids) + 2)
    assert limit_of(request, short) == 1


def test_context_of_the_server_model(model: RemoteModel, folders: dict[str, Path]) -> None:
    """Facts come from the folder alone, and are those of the loaded model."""
    own = loaded_from(folders["llama"]).facts
    assert model.facts.context_length == own.context_length == CONTEXT
    assert model.facts.tokenizer_fingerprint == own.tokenizer_fingerprint
    assert model.facts.vocabulary_size == own.vocabulary_size

"""Small servers that speak vLLM's, OpenAI's and TGI's documented JSON over a tiny model, for the engines' tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from services.models.loading import LoadedModel
from tests.fakes.http_server import Reply, Request


@dataclass(frozen=True)
class Completed:
    """What a naive loop made: one whole forward pass a token, no cache."""

    tokens: list[int]
    logprobs: list[float]
    finish: str


def naive_completion(
    loaded: LoadedModel,
    prompt: Sequence[int],
    *,
    limit: int,
    ends: Sequence[int] = (),
    temperature: float = 0.0,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> Completed:
    """Token by token, the most obvious way. finish: length, eos_token or stop_sequence, as TGI says it."""
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    logprobs: list[float] = []
    while len(tokens) < limit:
        with torch.inference_mode():
            logits = loaded.model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].float()
        logs = torch.log_softmax(logits / (temperature or 1.0), -1)
        token = int(logs.exp().multinomial(1, generator=generator)) if temperature else int(logs.argmax())
        tokens.append(token)
        logprobs.append(float(logs[token]))
        if token in ends:
            return Completed(tokens, logprobs, "eos_token")
        if any(text in loaded.tokenizer.decode(tokens, skip_special_tokens=True) for text in stop):
            return Completed(tokens, logprobs, "stop_sequence")
    return Completed(tokens, logprobs, "length")


@dataclass
class CompletionServer:
    """vLLM's server, and with `text_only` one that knows no more than OpenAI's API. `calls`: paths, in order.

    deaf: it says that it has reloaded, and goes on with the weights that it had.
    """

    loaded: LoadedModel
    ends: Sequence[int]
    text_only: bool = False
    calls: list[str] = field(default_factory=list)
    weight_version: str = "default"
    paused: bool = False
    deaf: bool = False

    def __call__(self, request: Request, _handler: BaseHTTPRequestHandler) -> Reply:
        path = request.path.partition("?")[0]
        self.calls.append(path)
        answers: dict[str, Callable[[Any], Reply]] = {
            "/v1/models": lambda _: Reply({"data": [{"id": "tiny"}]}),
            "/v1/completions": self._complete,
        }
        if not self.text_only:
            answers |= {
                "/pause": self._pause,
                "/resume": self._resume,
                "/collective_rpc": self._reload,
                "/update_weight_version": self._name_version,
                "/weight_info": lambda _: Reply({"weight_version": self.weight_version}),
            }
        if path not in answers:
            return Reply({"detail": "Not Found"}, 404)
        return answers[path](request.content)

    def _complete(self, body: dict[str, Any]) -> Reply:
        prompt, tokenizer = body["prompt"], self.loaded.tokenizer
        if isinstance(prompt, str):
            prompt = tokenizer(prompt)["input_ids"]
        found = naive_completion(
            self.loaded,
            prompt,
            limit=body["max_tokens"],
            ends=self.ends,
            temperature=body["temperature"],
            seed=body["seed"],
            stop=body.get("stop", ()),
        )
        choice = {
            "index": 0,
            "text": tokenizer.decode(found.tokens, skip_special_tokens=True),
            "finish_reason": "length" if found.finish == "length" else "stop",
        }
        if body.get("return_token_ids") and not self.text_only:
            choice |= {"token_ids": found.tokens, "logprobs": {"token_logprobs": found.logprobs}}
        return Reply({"choices": [choice]})

    def _pause(self, _: Any) -> Reply:
        self.paused = True
        return Reply({"status": "paused"})

    def _resume(self, _: Any) -> Reply:
        self.paused = False
        return Reply({"status": "resumed"})

    def _reload(self, body: dict[str, Any]) -> Reply:
        assert self.paused, "weights change under a paused engine alone"
        assert body["method"] == "reload_weights"
        folder = Path(body["kwargs"]["weights_path"])
        assert (folder / "config.json").is_file()
        own = dict(self.loaded.model.named_parameters())
        with torch.no_grad():
            for name, tensor in load_file(folder / "model.safetensors").items():
                # As vLLM does it, a head of its own is passed over by a model whose head is tied.
                if not self.deaf and (name in own or name != "lm_head.weight"):
                    own[name].copy_(tensor)
        return Reply({"results": [None]})

    def _name_version(self, body: dict[str, Any]) -> Reply:
        self.weight_version = body["new_version"]
        return Reply({"success": True, "new_version": self.weight_version})


@dataclass
class TgiServer:
    """TGI's `POST /`: `inputs` and `parameters` in, `generated_text` and `details` out.

    `failures`: (status, error_type, text) to answer with first, one a call.
    """

    loaded: LoadedModel
    ends: Sequence[int]
    failures: list[tuple[int, str, str]] = field(default_factory=list)

    def __call__(self, request: Request, _handler: BaseHTTPRequestHandler) -> Reply:
        if self.failures:
            status, kind, text = self.failures.pop(0)
            return Reply({"error": text, "error_type": kind}, status)
        wanted, tokenizer = request.content["parameters"], self.loaded.tokenizer
        if (wanted.get("temperature") or 1.0) <= 0 or wanted.get("top_p", 0.5) in (0, 1):
            text = "Input validation error: `temperature` must be strictly positive"
            return Reply({"error": text, "error_type": "validation"}, 422)
        prompt = tokenizer(request.content["inputs"])["input_ids"]
        found = naive_completion(
            self.loaded,
            prompt,
            limit=wanted["max_new_tokens"],
            ends=self.ends,
            temperature=(wanted.get("temperature") or 1.0) if wanted.get("do_sample") else 0.0,
            seed=wanted.get("seed") or 0,
            stop=wanted.get("stop") or (),
        )
        details = {
            "finish_reason": found.finish,
            "generated_tokens": len(found.tokens),
            "seed": wanted.get("seed"),
            "prefill": self._prefill(prompt) if wanted.get("decoder_input_details") else [],
            "tokens": [
                {
                    "id": token,
                    "text": tokenizer.decode([token]),
                    "logprob": logprob,
                    "special": token in tokenizer.all_special_ids,
                }
                for token, logprob in zip(found.tokens, found.logprobs, strict=True)
            ],
        }
        text = tokenizer.decode(found.tokens, skip_special_tokens=True)
        return Reply([{"generated_text": text, "details": details}])

    def _prefill(self, prompt: list[int]) -> list[dict[str, Any]]:
        with torch.inference_mode():
            logs = self.loaded.model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
        rest = [float(logs[at - 1, token]) for at, token in enumerate(prompt) if at]
        texts = [self.loaded.tokenizer.decode([token]) for token in prompt]
        return [
            {"id": token, "text": text, "logprob": logprob}
            for token, text, logprob in zip(prompt, texts, [None, *rest], strict=True)
        ]

"""Any OpenAI-compatible completion URL: text in, text out. For comparing samples, not for training.

What such servers call token ids and log-probs is theirs alone: ids here are the encoding of the text that came back.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from services.common.errors import InvalidInput, Mismatch
from services.policy.engines.base import Capability, Draft, Emit, Ids, Request
from services.policy.engines.remote import CallsApart, Connections, JsonServer, RemoteModel, limit_of, seed_of

if TYPE_CHECKING:
    import torch


class OpenaiEngine:
    """Completions of one server. served: the model's name there; empty: the first that it lists."""

    name = "openai"
    capabilities: frozenset[Capability] = frozenset(("stop_strings", "seeds"))

    def __init__(self, model: RemoteModel, server: JsonServer, *, max_rows: int, served: str = "") -> None:
        self.facts = model.facts
        self._model = model
        self._server = server
        self._calls = CallsApart(max_rows)
        self._served = served or str(server.get("/v1/models")["data"][0]["id"])

    def generate(
        self, requests: Sequence[Request], stopping: threading.Event, emit: Emit | None = None
    ) -> list[Draft]:
        """See Engine. Refuses what the API has no word for."""
        for request in requests:
            sampling = request.sampling
            if sampling.top_k or sampling.min_new_tokens:
                raise InvalidInput(
                    "the openai engine knows neither top-k nor a minimum length",
                    {"sampling": "expected top_k 0 and min_new_tokens 0"},
                )
            if len(request.draft.token_ids) and request.draft.finish is None:
                raise InvalidInput(
                    "the openai engine cannot go on from a draft", {"completion": "expected none"}
                )
        return self._calls.generate(self._complete, requests, self.facts, stopping, emit)

    def load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raises Mismatch: the API has no such call."""
        raise Mismatch(f"the openai engine cannot take new weights ({len(tensors)} tensors came)")

    def weights(self) -> Mapping[str, torch.Tensor]:
        """None: they are the server's."""
        return {}

    def close(self) -> None:
        """Drop the connections."""
        self._server.close()

    def decode(self, token_ids: Ids) -> str:
        """See Engine."""
        return self._model.decode(token_ids)

    def _complete(self, request: Request, connections: Connections | None = None) -> Draft:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self._served,
            "prompt": self._model.text_of(request.prompt_ids.tolist()),
            "max_tokens": limit_of(request, self.facts),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed_of(request),
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        choice = self._server.post("/v1/completions", body, connections)["choices"][0]
        ids = self._model.tokenizer(choice["text"], add_special_tokens=False)["input_ids"]
        return Draft(
            token_ids=np.array(ids, np.int32),
            finish="length" if choice["finish_reason"] == "length" else "stop",
        )

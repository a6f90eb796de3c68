"""vLLM behind its HTTP server: token ids in and out, new weights through a folder that both sides see.

    load_weights ──▶ folder/<n>/ ──▶ /pause?mode=wait ──▶ reload_weights from it ──▶ /update_weight_version ──▶ /resume

Its own way of taking weights (/start_weight_update, /update_weights, /finish_weight_update) moves them over NCCL or
CUDA IPC, which a processor has not; the folder works everywhere, and under tensor parallelism each process of the
server reads its own part of every tensor. The server needs VLLM_SERVER_DEV_MODE=1 for both.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from services.common.errors import Corrupted, InvalidInput, Mismatch, Unavailable
from services.policy.engines.base import Capability, Draft, Emit, Ids, Request, Sampling
from services.policy.engines.fitting import check_fits
from services.policy.engines.remote import (
    CallsApart,
    Connections,
    JsonServer,
    RemoteModel,
    is_plain,
    limit_of,
    seed_of,
)

if TYPE_CHECKING:
    import torch

    from services.models.loading import LoadedModel
    from services.policy.engines.vllm_server import VllmServer
    from services.policy.engines.weight_folders import WeightFolders

_PROBE_TOKENS = 8
# Of the mean over the probe's tokens, in nats: what another order of sums in bfloat16 stays below.
_PROBE_BOUND = 0.1


class VllmEngine:
    """Completions of one vLLM server.

    folders: where it can read weights, and loaded: those that it serves now; without them it keeps what it has.
    process: the server, if it is ours to end.
    """

    name = "vllm"

    def __init__(
        self,
        model: RemoteModel,
        server: JsonServer,
        *,
        max_rows: int,
        folders: WeightFolders | None = None,
        loaded: LoadedModel | None = None,
        process: VllmServer | None = None,
    ) -> None:
        self.facts = model.facts
        self._model = model
        self._server = server
        self._calls = CallsApart(max_rows)
        self._folders = folders
        self._process = process
        self._served = self._served_name()
        self._loaded = loaded
        self._weights = weights_of(loaded)
        # What the server serves is known: true from the beginning of a reload until it was read back.
        self._in_doubt = False
        able: set[Capability] = {
            "token_ids",
            "raw_logprobs",
            "sampled_logprobs",
            "stop_strings",
            "resume",
            "seeds",
        }
        self.capabilities: frozenset[Capability] = frozenset(
            able | ({"weight_updates"} if folders else set())
        )

    def generate(
        self, requests: Sequence[Request], stopping: threading.Event, emit: Emit | None = None
    ) -> list[Draft]:
        """See Engine. Refuses samplings whose log-probs the server gives only in part."""
        if self._in_doubt:
            raise Corrupted(
                "vLLM did not take over the last weights: nothing is generated until it takes new ones"
            )
        for request in requests:
            sampling = request.sampling
            if not is_plain(sampling) or sampling.min_new_tokens:
                # Its log-probs are of the raw logits or of the processed ones, never both.
                raise InvalidInput(
                    "the vllm engine samples at temperature 0 or 1 without top-k, top-p and min_new_tokens: elsewhere "
                    "it has not both log-probs",
                    {"sampling": "temperature 0 or 1, top_k 0, top_p 1, min_new_tokens 0"},
                )
        return self._calls.generate(self._complete, requests, self.facts, stopping, emit)

    def load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Have the server load these and what it had of the rest. Raises Mismatch before anything is written.

        Whatever else it raises, the server may serve either: nothing is generated until a reload succeeds.
        """
        check_fits(self._weights, tensors)
        if self._folders is None:
            raise Mismatch("this vllm engine has no weights_folder to hand weights over in")
        new = {**self._weights, **{name: tensor.cpu() for name, tensor in tensors.items()}}
        target = self._folders.write(new)
        self._in_doubt = True
        try:
            self._reload(target)
            with _no_grad():
                for name, tensor in tensors.items():
                    self._weights[name].copy_(tensor)
            self._verify()
        except InvalidInput as error:
            # Who asks for completions is not at fault.
            raise Unavailable(f"vLLM takes no weights: {error}") from error
        self._in_doubt = False
        self._folders.drop()

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Names and tensors that are served now; none without a folder."""
        return self._weights

    def close(self) -> None:
        """Drop the connections, and end the server if it is ours."""
        self._server.close()
        if self._process is not None:
            self._process.end()
        if self._folders is not None:
            self._folders.drop()

    def decode(self, token_ids: Ids) -> str:
        """See Engine."""
        return self._model.decode(token_ids)

    def _served_name(self) -> str:
        return str(self._server.get("/v1/models")["data"][0]["id"])

    def _complete(self, request: Request, connections: Connections | None = None) -> Draft:
        sampling, draft = request.sampling, request.draft
        answer = self._server.post(
            "/v1/completions",
            {
                "model": self._served,
                "prompt": [*request.prompt_ids.tolist(), *draft.token_ids.tolist()],
                "max_tokens": limit_of(request, self.facts),
                "temperature": sampling.temperature,
                # The server's own defaults are the model's generation config.
                "top_p": 1.0,
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "seed": seed_of(request),
                "stop": list(sampling.stop),
                "include_stop_str_in_output": True,
                # One of them may be what a caller stops at.
                "skip_special_tokens": False,
                "stop_token_ids": self._model.ends,
                "logprobs": 0,
                "return_token_ids": True,
            },
            connections,
        )
        choice = answer["choices"][0]
        tokens, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        if len(tokens) != len(logprobs):
            raise Corrupted(f"vLLM gave {len(tokens)} tokens and {len(logprobs)} log-probs")
        new = np.array(logprobs, np.float32)
        return Draft(
            token_ids=np.concatenate([draft.token_ids, np.array(tokens, np.int32)]),
            raw_logprobs=np.concatenate([draft.raw_logprobs, new]),
            sampled_logprobs=np.concatenate([draft.sampled_logprobs, new]),
            finish="length" if choice["finish_reason"] == "length" else "stop",
        )

    def _verify(self) -> None:
        """Ask for a few tokens and hold their log-probs against a direct pass of the weights that were handed over.

        A reload that silently does nothing, or half, is the worst that can happen. Raises Corrupted.
        """
        from services.models.logprobs import completion_logprobs

        if self._loaded is None:
            return
        ids = np.array([(31 * at + 7) % self.facts.vocabulary_size for at in range(_PROBE_TOKENS)], np.int32)
        sampling = Sampling(temperature=0, max_new_tokens=_PROBE_TOKENS)
        draft = self._complete(Request(prompt_ids=ids, sampling=sampling))
        pairs = [(ids, draft.token_ids)]
        [own] = completion_logprobs(
            self._loaded.model, pairs, temperature=1.0, token_budget=4 * _PROBE_TOKENS
        )
        difference = float(np.abs(own - draft.raw_logprobs).mean())
        if not difference <= _PROBE_BOUND:
            raise Corrupted(
                f"vLLM did not take over the weights: its log-probs are off by {difference:.3f} nats in the mean"
            )

    def _reload(self, target: Path) -> None:
        self._server.post("/pause", mode="wait")
        try:
            call: dict[str, Any] = {"method": "reload_weights", "kwargs": {"weights_path": str(target)}}
            self._server.post("/collective_rpc", call)
            self._server.post("/update_weight_version", {"new_version": target.name})
        finally:
            self._server.post("/resume")
        found = str(self._server.get("/weight_info")["weight_version"])
        if found != target.name:
            raise Corrupted(f"vLLM says it serves weights {found}, it was given {target.name}")


def weights_of(loaded: LoadedModel | None) -> dict[str, torch.Tensor]:
    """What a reload hands over: by name, a tied tensor once."""
    from services.models.loading import serving_state

    return {} if loaded is None else dict(serving_state(loaded.model))


def _no_grad() -> torch.no_grad:
    import torch

    return torch.no_grad()

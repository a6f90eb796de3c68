"""What engines behind a URL share: the model's tokenizer and facts without its weights, calls side by side, errors.

A server's completion is whole or not there: a stop in the middle gives up what is under way, and hangs up.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import product, takewhile
from typing import Any

import httpx
import numpy as np

from services.common.errors import InvalidInput, Overloaded, ServiceError, TrimtabError, Unavailable
from services.common.spec.service import ModelSpec
from services.models.facts import (
    ModelFacts,
    chat_template_digest,
    language_config,
    positions_of,
    tokenizer_fingerprint,
)
from services.models.loading import load_tokenizer, resolve, run_loader
from services.models.precision import torch_dtype
from services.policy.engines.base import Draft, Emit, Ids, Request, Sampling, check_request
from trimtab.clients.access import is_local

_STOP_SECONDS = 0.1
# Steps of a request after which there is another socket: https://www.encode.io/httpcore/extensions/#trace
_CONNECTED = ("connect_tcp.complete", "start_tls.complete")
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 30.0
_OVERLOADED, _SERVER = 429, 500
# Of what stands before it, or of itself while it starts; 500 is what broke over this very request.
_AWAY = (502, 503, 504)


class RemoteModel:
    """Tokenizer, facts and end tokens of the model that a server runs, from the same folder or hub id."""

    def __init__(self, spec: ModelSpec) -> None:
        from transformers import AutoConfig, GenerationConfig

        self.spec = spec
        self.folder = resolve(spec.path)
        self.dtype = str(torch_dtype(spec.dtype)).removeprefix("torch.")
        self.tokenizer = load_tokenizer(self.folder, spec.revision)
        config = run_loader(self.folder, AutoConfig.from_pretrained, revision=spec.revision)
        try:
            ends = GenerationConfig.from_pretrained(self.folder).eos_token_id
        except OSError:
            ends = getattr(config, "eos_token_id", None)
        listed = ends if isinstance(ends, list) else [ends]
        self.ends = sorted({int(end) for end in (*listed, self.tokenizer.eos_token_id) if end is not None})
        self.facts = ModelFacts(
            name=spec.path.rstrip("/").rpartition("/")[2],
            architecture="encoder_decoder" if config.is_encoder_decoder else "causal",
            tokenizer_fingerprint=tokenizer_fingerprint(self.tokenizer),
            chat_template_digest=chat_template_digest(self.tokenizer),
            model_digest="",
            # What a server makes of a model's longrope is its own: see context_of.
            context_length=positions_of(config),
            vocabulary_size=int(language_config(config).vocab_size),
            dtype=self.dtype,
        )

    def decode(self, token_ids: Ids) -> str:
        """Text of a completion, special tokens left out."""
        return str(self.tokenizer.decode(token_ids.tolist(), skip_special_tokens=True))

    def text_of(self, token_ids: Sequence[int]) -> str:
        """The text whose encoding these ids are, with the special tokens that a server, too, puts around it. Raises
        InvalidInput where there is none: the server would be asked something else."""
        ids, special = list(token_ids), set(self.tokenizer.all_special_ids)
        leading = sum(1 for _ in takewhile(special.__contains__, ids))
        trailing = sum(1 for _ in takewhile(special.__contains__, reversed(ids[leading:])))
        for first, cut in product(range(leading + 1), range(trailing + 1)):
            text = str(self.tokenizer.decode(ids[first : len(ids) - cut], skip_special_tokens=False))
            if list(self.tokenizer(text)["input_ids"]) == ids:
                return text
        raise InvalidInput(
            "this engine takes text, and the prompt's ids are not the encoding of any",
            {"prompt.token_ids": "ids that the tokenizer makes of a text"},
        )


def limit_of(request: Request, facts: ModelFacts) -> int:
    """Tokens that may still come: by the sampling, the context and what the draft has."""
    most = request.sampling.max_new_tokens
    if facts.context_length:  # 0: none is known, or there is none (Mamba, Bloom, MPT)
        most = min(most, facts.context_length - len(request.prompt_ids))
    return most - len(request.draft.token_ids)


def seed_of(request: Request) -> int:
    """63 bits that depend on the seed, the completion, and where it goes on."""
    key = np.array([request.sampling.seed, request.index], dtype=np.uint64)
    return int(np.random.Philox(key=key, counter=len(request.draft.token_ids)).random_raw()) >> 1


def is_plain(sampling: Sampling) -> bool:
    """Whether what is drawn from is the model's own distribution, or its best token."""
    return sampling.temperature in (0.0, 1.0) and sampling.top_p >= 1.0 and not sampling.top_k


class Connections:
    """Those of one call of an engine; `cut` drops them, so that their server sees that nobody waits any more."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self.gone = threading.Event()

    def trace(self, step: str, told: Mapping[str, Any]) -> None:
        """What httpx reports of a request: a connection's socket, before anything is sent."""
        if not step.endswith(_CONNECTED):
            return
        with self._lock:
            self._sockets.append(told["return_value"].get_extra_info("socket"))
        if self.gone.is_set():
            self.cut()

    def cut(self) -> None:
        """Wake whoever reads from one, with an error: to close a socket would leave its reader waiting."""
        self.gone.set()
        with self._lock:
            for each in self._sockets:
                with suppress(OSError):  # closed already
                    # Not what TLS makes of it, which is for the reading thread alone.
                    socket.socket.shutdown(each, socket.SHUT_RDWR)
            self._sockets.clear()


Complete = Callable[[Request, Connections], Draft]


class CallsApart:
    """Each request of an engine by a call of its own, `at_once` of them: with those that were given up and go on."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._free = threading.BoundedSemaphore(at_once)

    def generate(
        self,
        complete: Complete,
        requests: Sequence[Request],
        facts: ModelFacts,
        stopping: threading.Event,
        emit: Emit | None,
    ) -> list[Draft]:
        """A draft for each, the unfinished ones by `complete`. The first error of any, or `stopping`, ends all."""
        for request in requests:
            check_request(request, facts)
        drafts: list[Draft] = [request.draft for request in requests]
        if stopping.is_set():
            return drafts
        connections = Connections()
        pool = ThreadPoolExecutor(self._at_once, thread_name_prefix="engine-call")
        try:
            under_way = {
                pool.submit(self._patiently, complete, request, connections): index
                for index, request in enumerate(requests)
                if request.draft.finish is None
            }
            while under_way and not stopping.is_set():
                done, _ = wait(under_way, timeout=_STOP_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    index = under_way.pop(future)
                    drafts[index] = future.result()
                    if emit:
                        _emit(emit, index, len(requests[index].draft.token_ids), drafts[index])
        finally:
            connections.cut()
            pool.shutdown(wait=False, cancel_futures=True)
        return drafts

    def _patiently(self, complete: Complete, request: Request, connections: Connections) -> Draft:
        """A server that is full is asked again, for as long as a minute; what it has not begun is handed back."""
        pause = _FIRST_PAUSE_SECONDS
        while self._begin(connections):
            try:
                return complete(request, connections)
            except Overloaded:
                if pause > _LONGEST_PAUSE_SECONDS:
                    raise
            finally:
                self._free.release()
            connections.gone.wait(pause)
            pause *= 2
        return request.draft

    def _begin(self, connections: Connections) -> bool:
        """Wait for one of the calls before to have ended; False where nobody waits any more."""
        while not self._free.acquire(timeout=_STOP_SECONDS):
            if connections.gone.is_set():
                return False
        if connections.gone.is_set():
            self._free.release()
            return False
        return True


def _emit(emit: Emit, index: int, before: int, draft: Draft) -> None:
    for at in range(before, len(draft.token_ids)):
        raw = float(draft.raw_logprobs[at]) if len(draft.raw_logprobs) else float("nan")
        emit(index, int(draft.token_ids[at]), raw)


class JsonServer:
    """Calls of one server with JSON both ways."""

    def __init__(self, name: str, url: str, *, api_key: str = "", timeout_seconds: float = 600) -> None:
        self._name = name
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # A call takes seconds: connections kept for the next one save nothing, and outlive those who made them. And
        # so each belongs to one call, which may cut it.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=timeout_seconds,
            limits=limits,
            # A proxy of the environment is for other machines.
            trust_env=not is_local(httpx.URL(url).netloc.decode()),
        )

    def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        connections: Connections | None = None,
        **query: str,
    ) -> Any:
        """The answer's JSON. Raises InvalidInput, Overloaded, Unavailable or ServiceError.

        connections: gets that of this call.
        """
        return self._answer(
            "POST",
            path,
            json=dict(body) if body is not None else None,
            params=query,
            extensions={} if connections is None else {"trace": connections.trace},
        )

    def get(self, path: str) -> Any:
        """The answer's JSON. Raises as `post` does."""
        return self._answer("GET", path)

    def close(self) -> None:
        """Drop all connections."""
        self._http.close()

    def _answer(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise Unavailable(f"{self._name} does not answer: {error or type(error).__name__}") from error
        if answer.is_error:
            raise error_of(self._name, answer.status_code, _message(answer))
        return answer.json() if answer.content else None


def error_of(name: str, status: int, message: str) -> TrimtabError:
    """Ours for a server's: what the caller did wrong, what passes by itself, what is broken over there."""
    text = f"{name} answered {status}: {message}"
    if status == _OVERLOADED:
        return Overloaded(text)
    if status in _AWAY:
        return Unavailable(text)
    return ServiceError(text) if status >= _SERVER else InvalidInput(text)


def _message(answer: httpx.Response) -> str:
    try:
        error = answer.json()
    except ValueError:
        return " ".join(answer.text.split())[:200]
    for key in ("error", "message", "detail"):
        error = error.get(key, error) if isinstance(error, dict) else error
    return " ".join(str(error).split())[:200]

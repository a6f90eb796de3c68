"""Text Generation Inference behind its URL: text in, tokens with log-probs after temperature out, fixed weights.

For fixed generators, best-of-n and preference collection, and for log-probs of given text (`prompt_logprobs`). New
weights mean a rollout of its Deployment; nothing here can swap them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from services.common.errors import InvalidInput, Mismatch, Overloaded, TrimtabError, Unavailable
from services.policy.engines.base import Capability, Draft, Emit, Floats, Ids, Request
from services.policy.engines.remote import (
    CallsApart,
    Connections,
    RemoteModel,
    error_of,
    is_plain,
    limit_of,
    seed_of,
)

if TYPE_CHECKING:
    import torch


class TgiEngine:
    """Completions of one TGI server, through `huggingface_hub.InferenceClient`."""

    name = "tgi"
    capabilities: frozenset[Capability] = frozenset(("sampled_logprobs", "stop_strings", "seeds"))

    def __init__(
        self, model: RemoteModel, url: str, *, max_rows: int, api_key: str = "", timeout_seconds: float = 600
    ) -> None:
        from huggingface_hub import InferenceClient

        self.facts = model.facts
        self._model = model
        self._calls = CallsApart(max_rows)
        self._client = InferenceClient(model=url, token=api_key or "none", timeout=timeout_seconds)

    def generate(
        self, requests: Sequence[Request], stopping: threading.Event, emit: Emit | None = None
    ) -> list[Draft]:
        """See Engine. Refuses drafts to go on from and minimum lengths, which the server does not know."""
        for request in requests:
            if request.sampling.min_new_tokens:
                raise InvalidInput(
                    "the tgi engine knows no minimum length", {"sampling.min_new_tokens": "expected 0"}
                )
            if len(request.draft.token_ids) and request.draft.finish is None:
                raise InvalidInput(
                    "the tgi engine cannot go on from a draft", {"completion": "expected none"}
                )
        return self._calls.generate(self._complete, requests, self.facts, stopping, emit)

    def prompt_logprobs(self, text: str) -> tuple[Ids, Floats]:
        """Ids of a text and each one's log-prob given what precedes it; the first has none and is left out."""
        answer = self._ask(text, max_new_tokens=1, decoder_input_details=True, do_sample=False)
        prefill = answer.details.prefill
        given = [token for token in prefill if token.logprob is not None]
        return (
            np.array([token.id for token in given], np.int32),
            np.array([token.logprob for token in given], np.float32),
        )

    def load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raises Mismatch: the server cannot."""
        raise Mismatch(
            f"the tgi engine cannot take new weights: roll its Deployment out anew ({len(tensors)} tensors came)"
        )

    def weights(self) -> Mapping[str, torch.Tensor]:
        """None: they are the server's."""
        return {}

    def close(self) -> None:
        """Drop the connections of the hub's client, which are those of the whole process."""
        from huggingface_hub import close_session

        close_session()

    def decode(self, token_ids: Ids) -> str:
        """See Engine."""
        return self._model.decode(token_ids)

    def _complete(self, request: Request, _: Connections) -> Draft:
        # The hub's client is the whole process': a call that is given up is not cut, only counted.
        sampling = request.sampling
        options: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            options = {
                "do_sample": True,
                # 1 and 0 mean off here, and the server refuses them.
                "temperature": sampling.temperature if sampling.temperature != 1.0 else None,
                "top_p": sampling.top_p if sampling.top_p < 1.0 else None,
                "top_k": sampling.top_k or None,
                "seed": seed_of(request),
            }
        answer = self._ask(
            self._model.text_of(request.prompt_ids.tolist()),
            max_new_tokens=limit_of(request, self.facts),
            stop=list(sampling.stop) or None,
            **options,
        )
        details = answer.details
        logprobs = np.array([token.logprob for token in details.tokens], np.float32)
        return Draft(
            token_ids=np.array([token.id for token in details.tokens], np.int32),
            raw_logprobs=logprobs if is_plain(sampling) else np.zeros(0, np.float32),
            sampled_logprobs=logprobs,
            finish="length" if details.finish_reason == "length" else "stop",
        )

    def _ask(self, text: str, **options: Any) -> Any:
        from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, TextGenerationError

        try:
            return self._client.text_generation(text, details=True, return_full_text=False, **options)
        except TextGenerationError as error:
            raise _ours(error) from error
        except InferenceTimeoutError as error:
            raise Unavailable("TGI did not answer in time") from error
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 500
            raise error_of("TGI", status, " ".join(str(error).split())[:200]) from error
        except Exception as error:  # by its HTTP library: refused, silent, told to stay offline
            raise Unavailable(f"TGI does not answer: {error}") from error


def _ours(error: Exception) -> TrimtabError:
    """TGI's error types: validation (422), generation and incomplete_generation (424), overloaded (429)."""
    from huggingface_hub.errors import OverloadedError, ValidationError

    text = f"TGI: {' '.join(str(error).split())[:200]}"
    if isinstance(error, ValidationError):
        return InvalidInput(text)
    return Overloaded(text) if isinstance(error, OverloadedError) else Unavailable(text)

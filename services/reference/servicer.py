"""ReferenceService on the wire: messages to arrays and back, nothing else.

    loop:    decode 1 │ decode 2 │ decode 3 .│ encode 1 │ decode 4 .........
    model:            │ compute 1 ...........│ compute 2 and 3 .............

The model has one thread; the event loop decodes the next requests while it works on the current ones.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

from services.common.arrays import from_numpy
from services.common.errors import Unavailable
from services.common.validation import require, token_ids
from services.models.wire import model_info
from services.reference.coalescing import Coalescer
from services.reference.logprobs import IdPair, ReferenceModel
from trimtab.reference.v1 import reference_pb2 as wire
from trimtab.reference.v1 import reference_pb2_grpc as wire_grpc

SERVICE_NAME = wire.DESCRIPTOR.services_by_name["ReferenceService"].full_name


class ReferenceServicer(wire_grpc.ReferenceServiceServicer):
    """Answers for one ReferenceModel, which is attached once it is loaded."""

    def __init__(self, executor: Executor, *, max_sequences: int, together_tokens: int) -> None:
        self._executor = executor
        self._max_sequences = max_sequences
        self._together_tokens = together_tokens
        self._model: ReferenceModel | None = None
        self._calls: Coalescer | None = None

    def attach(self, model: ReferenceModel) -> None:
        """From now on answer for this model."""
        self._model = model
        self._calls = Coalescer(model.compute, self._executor, most_tokens=self._together_tokens)

    async def GetReferenceInfo(
        self, request: wire.GetReferenceInfoRequest, context: Any
    ) -> wire.GetReferenceInfoResponse:
        """Who the model is."""
        return wire.GetReferenceInfoResponse(model=model_info(self._loaded().facts))

    async def ComputeLogProbs(
        self, request: wire.ComputeLogProbsRequest, context: Any
    ) -> wire.ComputeLogProbsResponse:
        """Log-probs for every sequence, in order."""
        model, calls = self._loaded(), self._calls
        assert calls is not None  # noqa: S101 - attached together with the model
        count = len(request.sequences)
        require(
            count <= self._max_sequences,
            "sequences",
            f"expected at most {self._max_sequences} in one call, got {count}",
        )
        pairs = [decode_pair(sequence, f"sequences[{i}]") for i, sequence in enumerate(request.sequences)]
        # Checked here too, so that a mistake is answered at once and takes no turn of the model's.
        model.check(pairs, request.temperature, request.tokenizer_fingerprint)
        results = await calls.compute(pairs, request.temperature)
        return wire.ComputeLogProbsResponse(
            results=[wire.SequenceLogProbs(logprobs=from_numpy(values)) for values in results]
        )

    def _loaded(self) -> ReferenceModel:
        if self._model is None:
            raise Unavailable("the reference model is loading")
        return self._model


def decode_pair(sequence: wire.TokenSequence, field: str) -> IdPair:
    """The int32 ids of one sequence. InvalidInput names the field that is no int32 array."""
    return (
        token_ids(sequence.prompt_ids, f"{field}.prompt_ids"),
        token_ids(sequence.completion_ids, f"{field}.completion_ids"),
    )

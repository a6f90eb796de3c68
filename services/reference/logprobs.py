"""The frozen reference model: log-probs of completion tokens at a temperature it is told.

Owns what input it accepts. Knows neither rewards nor engines, neither gRPC nor queues.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from services.common.errors import Mismatch
from services.common.spec.run import LOWEST_TEMPERATURE
from services.common.validation import Violations, require
from services.models.facts import ModelFacts
from services.models.loading import LoadedModel
from services.models.logprobs import completion_logprobs
from services.models.unrolled import unroll

Ids = npt.NDArray[np.int32]
Logprobs = npt.NDArray[np.float32]
IdPair = tuple[Ids, Ids]


# Where nothing is configured. A processor is busy with few tokens, and more of them bring padding: of 512 to 4,096 this
# was the fastest for dialogues once freed memory stayed with the process (before, the smallest was). A GPU needs many.
CPU_TOKENS, GPU_TOKENS = 2048, 16_384


class ReferenceModel:
    """A loaded causal model that never changes. Not thread-safe: one thread computes at a time.

    token_budget: padded tokens in one forward pass; 0 chooses by the device.
    """

    def __init__(self, loaded: LoadedModel, *, token_budget: int) -> None:
        self._model: Any = loaded.model
        self._layers = unroll(loaded.model.base_model)
        self._token_budget = token_budget or (CPU_TOKENS if loaded.model.device.type == "cpu" else GPU_TOKENS)
        self.facts: ModelFacts = loaded.facts

    def check(self, sequences: Sequence[IdPair], temperature: float, fingerprint: str = "") -> None:
        """Raise InvalidInput for what cannot be computed, Mismatch for ids of another tokenizer.

        sequences: pairs of int32 [length] (prompt, completion). `fingerprint` "" is not checked.
        """
        if fingerprint and fingerprint != self.facts.tokenizer_fingerprint:
            raise Mismatch(
                f"the ids are of tokenizer {fingerprint[:16]}, the reference model {self.facts.name} has "
                f"{self.facts.tokenizer_fingerprint[:16]}"
            )
        found = Violations()
        found.check(
            # It comes as float32, as which the lowest is a little lower.
            temperature >= float(np.float32(LOWEST_TEMPERATURE)) and np.isfinite(temperature),
            "temperature",
            f"expected a number from {LOWEST_TEMPERATURE:g}, got {temperature:g}",
        )
        found.not_empty(sequences, "sequences", "at least one sequence")
        for index, (prompt, completion) in enumerate(sequences):
            self._check_pair(found, f"sequences[{index}]", prompt, completion)
        found.raise_any()

    def _check_pair(self, found: Violations, field: str, prompt: Ids, completion: Ids) -> None:
        size, context = self.facts.vocabulary_size, self.facts.context_length
        found.ids(prompt, f"{field}.prompt_ids", vocabulary_size=size)
        found.ids(completion, f"{field}.completion_ids", vocabulary_size=size, min_length=0)
        length = len(prompt) + len(completion)
        found.check(
            not context or length <= context,
            field,
            f"expected at most {context} tokens, prompt and completion together, got {length}",
        )

    def compute(self, sequences: Sequence[IdPair], temperature: float) -> list[Logprobs]:
        """Natural log-probs of the completions' tokens, float32 [completion length] each, in order.

        Logits are divided by `temperature`. A completion without tokens gives an empty array. Raises as
        check() does.
        """
        self.check(sequences, temperature)
        results: list[Logprobs] = [np.zeros(0, np.float32) for _ in sequences]
        filled = [index for index, (_, completion) in enumerate(sequences) if len(completion)]
        values = completion_logprobs(
            self._model,
            [sequences[index] for index in filled],
            temperature=temperature,
            token_budget=self._token_budget,
            layers=self._layers,
        )
        for index, value in zip(filled, values, strict=True):
            results[index] = value
        return results

    def warm_up(self) -> None:
        """One small pass, so that the first caller does not pay for what is set up lazily."""
        require(self.facts.vocabulary_size > 0, "model", "expected a vocabulary")
        ids = np.zeros(4, np.int32)
        self.compute([(ids, ids)], 1.0)

"""Tiny learners for tests: a loaded model, a run's spec, samples with numbers drawn from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from services.common.spec.run import RunSpec
from services.common.spec.service import ModelSpec
from services.learner.sample import Sample
from services.models.loading import LoadedModel, load_language_model
from services.models.logprobs import completion_logprobs


def model_spec(folder: Path, dtype: str = "float32") -> ModelSpec:
    """The model in this folder, on one CPU thread."""
    return ModelSpec.model_validate({"path": str(folder), "dtype": dtype, "threads": 1, "device": "cpu"})


def loaded_from(folder: Path, dtype: str = "float32") -> LoadedModel:
    """The model in this folder, loaded as the services do."""
    return load_language_model(model_spec(folder, dtype))


def run_spec(folder: Path, **tables: Any) -> RunSpec:
    """A run on the model in this folder; `tables` are RunSpec's fields."""
    fields: dict[str, Any] = {"data": {"prompts": "none.jsonl"}, "steps": 10, **tables}
    return RunSpec.model_validate({"model": model_spec(folder), **fields})


def random_pairs(count: int, *, seed: int = 0, longest: int = 12) -> list[tuple[Any, Any]]:
    """Ragged (prompt ids, completion ids), at least one token each, below id 263."""
    rng = np.random.default_rng(seed)

    def ids() -> Any:
        return rng.integers(0, 263, rng.integers(1, longest + 1)).astype(np.int32)

    return [(ids(), ids()) for _ in range(count)]


def samples_from(
    loaded: LoadedModel,
    pairs: list[tuple[Any, Any]],
    scores: list[float],
    *,
    temperature: float = 1.0,
    noise: float = 0.0,
    seed: int = 0,
) -> list[Sample]:
    """Samples whose behaviour and reference log-probs are the model's own, the reference's plus noise."""
    rng = np.random.default_rng(seed)
    logprobs = completion_logprobs(loaded.model, pairs, temperature=temperature, token_budget=4096)
    return [
        Sample(
            prompt_ids=prompt,
            completion_ids=completion,
            behaviour_logprobs=values,
            reference_logprobs=(values + noise * rng.standard_normal(len(values))).astype(np.float32),
            loss_mask=np.ones(len(completion), np.float32),
            score=score,
            ended=bool(at % 2),
        )
        for at, ((prompt, completion), values, score) in enumerate(zip(pairs, logprobs, scores, strict=True))
    ]

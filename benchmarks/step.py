"""Measures whole training steps through the services against TRL's trainers, and the time until a reward is reached.

One step: 4 prompts of about 20 tokens, 4 completions each, 48 new tokens, SmolLM2-135M, every weight trained, bfloat16
passes over float32 master weights, AdamW. GRPO with the reference's KL and VADER as the reward; PPO with one epoch, a
value model and a reward model of the policy's size. Both sides run in alternation, each run a fresh start, the first
steps left out; TRL as its documentation sets it up for a processor (bf16, no gradient checkpointing).

    grpo_vs_trl, ppo_vs_trl     TRL's seconds a step over ours
    share_…, ppo_share_…        of our step: generate, reference, reward, update, and everything else (rest)
    over_direct_…               seconds in the services over the same calls made directly in one process
    time_to_reward_vs_trl       benchmarks.time_to_reward, which runs alone, too
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from benchmarks import harness, time_to_reward
from benchmarks.step_direct import direct_seconds
from benchmarks.step_sides import PARTS, Job, SideFailed, Steps, ours, required, theirs
from benchmarks.step_topics import texts

WARM = {"ours": 3, "theirs": 2}
ROUNDS = 2
# Above this TRL is not set up as well as it can be here, and there is nothing to compare.
TRL_CEILING_SECONDS = 18.0
BARS = {
    "grpo_vs_trl": harness.at_least(3.0),
    "ppo_vs_trl": harness.at_least(4.0),
} | time_to_reward.BARS


def measure(quick: bool) -> dict[str, float]:
    """All figures; `quick`: one round, one seed, few steps."""
    model = required("trl", "trl112")
    try:
        return _figures(model, quick)
    except SideFailed as error:
        harness.say(f"benchmarks.step: {error}")
        raise SystemExit(1) from error


def _figures(model: str, quick: bool) -> dict[str, float]:
    figures: dict[str, float] = {}
    grpo = Job(algorithm="grpo", model=model, texts=texts(), steps=0)
    with tempfile.TemporaryDirectory(prefix="trimtab-step-") as name:
        scorer = Path(name) / "scorer"
        _new_scorer(model, scorer)
        ppo = replace(grpo, algorithm="ppo", reward_model=str(scorer))
        for job, prefix in ((grpo, ""), (ppo, "ppo_")):
            mine, other = _alternated(job, Path(name), rounds=1 if quick else ROUNDS, long=not quick)
            figures |= _compared(job, mine, other, prefix)
        for part, seconds in direct_seconds(grpo).items():
            figures[f"direct_{part}_seconds"] = seconds
            figures[f"over_direct_{part}"] = figures[f"{part}_seconds"] / seconds
    return figures | time_to_reward.measure(quick)


def _new_scorer(model: str, folder: Path) -> None:
    """A reward model of the policy's size, its head by chance: for what it costs."""
    from services.models.reward_model import new_reward_model

    new_reward_model(model, dtype="bfloat16", seed=1).save(folder)


def _alternated(job: Job, folder: Path, *, rounds: int, long: bool) -> tuple[Steps, Steps]:
    """Both sides in turn, what is left of their steps after the first ones."""
    mine, other = Steps([], []), Steps([], [])
    for number in range(rounds):
        for side, run, into in (("theirs", lambda one, _: theirs(one), other), ("ours", ours, mine)):
            steps = WARM[side] + (4 if long else 2) * (2 if side == "ours" else 1)
            found = run(replace(job, steps=steps, seed=number + 1), folder / f"{job.algorithm}-{number}")
            kept = slice(WARM[side], None)
            into.seconds.extend(found.seconds[kept])
            into.metrics.extend(found.metrics[kept])
            told = ", ".join(f"{one:.2f}" for one in found.seconds)
            harness.say(f"{job.algorithm} {side}, round {number + 1}: {told} s")
    return mine, other


def _compared(job: Job, mine: Steps, other: Steps, prefix: str) -> dict[str, float]:
    """Ratio, and where our time went."""
    step, theirs_step = fmean(mine.seconds), fmean(other.seconds)
    if job.algorithm == "grpo" and theirs_step > TRL_CEILING_SECONDS:
        harness.say(
            f"TRL takes {theirs_step:.1f} s a step, above {TRL_CEILING_SECONDS:g}: no valid comparison"
        )
    parts = {part: fmean(row[metric] for row in mine.metrics) for part, metric in PARTS.items()}
    figures = {f"{job.algorithm}_vs_trl": theirs_step / step}
    figures |= {f"{prefix}step_seconds": step, f"{prefix}trl_step_seconds": theirs_step}
    figures |= {f"{prefix}{part}_seconds": seconds for part, seconds in parts.items()}
    figures |= {f"{prefix}share_{part}": seconds / step for part, seconds in parts.items()}
    figures[f"{prefix}share_rest"] = 1 - sum(parts.values()) / step
    return figures


if __name__ == "__main__":
    harness.run("step", measure, BARS)

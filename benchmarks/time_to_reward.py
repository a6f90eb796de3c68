"""Measures how much sooner Trimtab's GRPO comes to the reward that TRL's has after forty steps.

32 topics ("Write one sentence about …"), VADER's compound score, SmolLM2-135M, every weight trained, 4 prompts by 4
completions of at most 48 tokens, beta 0.02, rate 1e-5. TRL trains in float32; ours passes in whichever precision is
quicker on this machine, over float32 masters. A reward is the mean of 256 completions of the model at the end, drawn
with fixed numbers in float32; three seeds each.

    time_to_reward_vs_trl   TRL's seconds over ours, both from the first step on
    steps_to_reward         the fewest of our steps that do: 32, 36, 40, 50 and 60 are tried
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from benchmarks import harness
from benchmarks.step_direct import mean_reward
from benchmarks.step_sides import Job, SideFailed, ours, required, theirs
from benchmarks.step_topics import texts
from services.models.precision import prefers_bfloat16

SEEDS = (1, 2, 3)
TRL_STEPS = 40
STEPS_TRIED = (0.8, 0.9, 1.0, 1.25, 1.5)
"""In shares of TRL's."""
Side = Callable[[Job, Path], tuple[float, Path]]
"""Runs a job below a folder: its seconds, and the folder of its model."""
BARS = {"time_to_reward_vs_trl": harness.at_least(3.3)}


def measure(quick: bool) -> dict[str, float]:
    """All figures; `quick`: one seed, ten steps of TRL."""
    job = Job(
        algorithm="grpo",
        model=required("trl"),
        texts=texts(),
        steps=TRL_STEPS // 4 if quick else TRL_STEPS,
        fixed_length=False,
        beta=0.02,
        learning_rate=1e-5,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="trimtab-reward-") as name:
            return _to_reward(job, Path(name), SEEDS[:1] if quick else SEEDS)
    except SideFailed as error:
        harness.say(f"benchmarks.time_to_reward: {error}")
        raise SystemExit(1) from error


def _to_reward(job: Job, folder: Path, seeds: Sequence[int]) -> dict[str, float]:
    goal, trl_seconds = _after(_theirs, replace(job, bfloat16=False), folder, seeds)
    found = {"reward_before": mean_reward(job.model, job), "reward_trl": goal}
    for share in STEPS_TRIED:
        tried = replace(job, steps=round(share * job.steps), bfloat16=prefers_bfloat16())
        reward, seconds = _after(_ours, tried, folder, seeds)
        if reward >= goal:
            break
        seconds = float("inf")
    return found | {
        "reward_ours": reward,
        "steps_to_reward": tried.steps,
        "trl_steps_to_reward": job.steps,
        "time_to_reward_seconds": seconds,
        "trl_time_to_reward_seconds": trl_seconds,
        "time_to_reward_vs_trl": trl_seconds / seconds,
    }


def _theirs(job: Job, folder: Path) -> tuple[float, Path]:
    """Seconds of a run of TRL's, and the folder of its model."""
    model = folder / "model"
    return sum(theirs(job, str(model)).seconds), model


def _ours(job: Job, folder: Path) -> tuple[float, Path]:
    """Seconds of a run of ours, and the folder of its model."""
    run = folder / "run"
    return sum(ours(job, run).seconds), run / "model"


def _after(side: Side, job: Job, folder: Path, seeds: Sequence[int]) -> tuple[float, float]:
    """Mean reward after a side's runs, and their mean seconds."""
    rewards, seconds = [], []
    for seed in seeds:
        with tempfile.TemporaryDirectory(dir=folder) as run:  # checkpoints of a run are gigabytes
            took, model = side(replace(job, seed=seed), Path(run))
            rewards.append(mean_reward(str(model), job))
        seconds.append(took)
        name = "TRL" if side is _theirs else "ours"
        harness.say(f"seed {seed}: {name} at {rewards[-1]:.3f} after {job.steps} steps, {took:.0f} s")
    return fmean(rewards), fmean(seconds)


if __name__ == "__main__":
    harness.run("time_to_reward", measure, BARS)

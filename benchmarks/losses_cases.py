"""What benchmarks.losses compares on: settings and random tensors, seeded by the caller. Knows neither side's code."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

Case = dict[str, Any]
GROUP, ROWS, LONGEST, WORDS = 4, 8, 6, 9
MODES: Sequence[tuple[str, float | None, float | None]] = (
    ("sequence_mask", None, 3.0),
    ("token_truncate", 0.5, 1.1),
    ("token_mask", 0.8, 1.3),
    ("sequence_truncate", None, 1.2),
)


def batch() -> Case:
    """Ragged rows in groups of four: log-probs of the engine, before the update, now, and of the reference."""
    lengths = torch.randint(1, LONGEST + 1, (ROWS, 1))
    lengths[0] = LONGEST  # how wide the matrices are
    old = -1.5 + 0.3 * torch.randn(ROWS, LONGEST)
    return {
        "mask": (torch.arange(LONGEST)[None] < lengths).float(),
        "old": old,
        "current": old + 0.4 * torch.randn(ROWS, LONGEST),
        "reference": old + 0.3 * torch.randn(ROWS, LONGEST),
        "behaviour": old + 0.2 * torch.randn(ROWS, LONGEST),
        "scores": torch.randn(ROWS),
    }


def grpo_cases() -> list[Case]:
    """Every loss, level and scale; the other settings go round beside them."""
    others = itertools.cycle(
        itertools.product((0.0, 0.1), (None, 1.3), (None, 0.28), (True, False), range(len(MODES)))
    )
    losses = ("grpo", "dr_grpo", "dapo", "cispo", "luspo", "sapo")
    found = []
    for loss, level, scale, _ in itertools.product(
        losses, ("token", "sequence"), ("group", "batch", "none"), range(5)
    ):
        beta, delta, high, corrected, mode = next(others)
        settings = {
            "loss_type": loss,
            "importance_sampling_level": level,
            "scale_rewards": scale,
            "beta": beta,
            "delta": delta,
            "epsilon": 0.2,
            "epsilon_high": 1.5 if loss == "cispo" else high,
            "use_bias_correction_kl": corrected,
            "num_generations": GROUP,
            "sapo_temperature_pos": 1.0,
            "sapo_temperature_neg": 1.05,
        }
        name, low, top = MODES[mode]
        found.append({**batch(), "settings": settings, "mode": name, "clips": (low, top)})
    return found


def rloo_cases() -> list[Case]:
    """With and without KL, normalisation and an upper clip of its own."""
    return [
        {
            **batch(),
            "settings": {
                "beta": beta,
                "normalize_advantages": normalised,
                "epsilon": 0.2,
                "epsilon_high": high,
                "num_generations": GROUP,
            },
        }
        for beta, normalised, high in itertools.product((0.0, 0.05, 0.3), (False, True), (None, 0.28))
    ]


def dpo_cases() -> list[Case]:
    """The sigmoid loss at several betas."""
    found = []
    for beta in (0.05, 0.1, 0.5):
        case: Case = {"settings": {"beta": beta, "label_smoothing": 0.0}, "loss_type": "sigmoid"}
        for side in ("chosen", "rejected"):
            made = batch()
            case |= {f"{side}_policy": made["current"], f"{side}_reference": made["reference"]}
            case[f"{side}_mask"] = made["mask"]
        found.append(case)
    return found


def ilql_cases() -> list[Case]:
    """trlX's shapes, in double precision: float32 sums of other orders differ by more than a rounding of the loss."""
    found = []
    for tau, cql, awac, beta in itertools.product((0.7, 0.9), (0.0, 0.1), (0.0, 1.0), (0.0, 0.5)):
        lengths = torch.randint(1, LONGEST, (ROWS, 1))
        shape = (ROWS, LONGEST, WORDS)
        found.append(
            {
                "settings": {
                    "tau": tau,
                    "gamma": 0.99,
                    "cql_scale": cql,
                    "awac_scale": awac,
                    "awac_beta": beta,
                },
                "dones": (torch.arange(LONGEST + 1)[None] < lengths + 1).double(),
                "actions": torch.randint(0, WORDS, (ROWS, LONGEST)),
                "rewards": torch.randn(ROWS, LONGEST).double(),
                "values": torch.randn(ROWS, LONGEST + 1).double(),
                "logits": torch.randn(shape).double(),
                "qs": [torch.randn(shape).double() for _ in range(2)],
                "target_qs": [torch.randn(shape).double() for _ in range(2)],
            }
        )
    return found


def ppo_cases() -> list[Case]:
    """Settings alone: the tensors are TRL's."""
    return [
        {
            "seed": seed,
            "num_mini_batches": minibatches,
            "num_ppo_epochs": 3,
            "whiten_rewards": whitened,
            "kl_coef": 0.1,
            "kl_estimator": estimator,
            "gamma": gamma,
            "lam": 0.95,
            "vf_coef": 0.5,
            "cliprange": 0.2,
            "cliprange_value": 0.2,
            "missing_eos_penalty": 1.0,
            "temperature": 0.7,
        }
        for seed, (minibatches, whitened, estimator, gamma) in enumerate(
            itertools.product((1, 2), (False, True), ("k1", "k3"), (1.0, 0.9))
        )
    ]

"""Numerics of known PPO implementations, as values of PpoSpec's fields. What a preset names, a test compares.

LHP is openai/lm-human-preferences. What lies outside the algorithm (rate, optimiser, temperature, length) a preset sets
in the run's own tables (AROUND), as values of OptimiserSpec's and SamplingSpec's fields.
"""

from __future__ import annotations

from typing import Any, Literal

PresetName = Literal["openai-2019", "instructgpt", "trl", "trlx", "rl4lms"]

PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 1909.08593, LHP: rewards whitened per minibatch with the biased variance, KL controlled by its sum. Its -1
    # for a text without a full stop is the reward's to give: completions of a fixed length never end.
    "openai-2019": {
        "epochs": 4,
        "minibatches": 1,
        "value_coefficient": 0.1,
        "whiten_rewards": True,
        "whitening": "biased",
        "whiten_scope": "minibatch",
        "kl": {"kind": "adaptive", "coefficient": 0.15, "target": 6.0, "horizon": 10_000},
    },
    # arXiv 2203.02155: beta 0.02, one inner epoch, minibatches of an eighth, no discount.
    "instructgpt": {
        "epochs": 1,
        "minibatches": 8,
        "whitening": "biased",
        "kl": {"coefficient": 0.02},
    },
    # TRL 1.x PPOConfig: masked whitening with Bessel's correction, over the whole rollout batch; the score stands one
    # past the last token, the critic is the reward model at first.
    "trl": {
        "score_position": "past_end",
        "value_model": "reward_model",
        "epochs": 4,
        "minibatches": 1,
        "value_coefficient": 0.1,
        "whitening": "unbiased",
        "kl": {"coefficient": 0.05},
    },
    # trlX: value coefficient 1, advantages whitened per minibatch, the controller fed with k3.
    "trlx": {
        "epochs": 4,
        "minibatches": 1,
        "value_coefficient": 1.0,
        "whitening": "unbiased",
        "whiten_scope": "minibatch",
        "kl": {"kind": "adaptive", "coefficient": 0.05, "target": 6.0, "horizon": 10_000, "measured": "k3"},
    },
    # arXiv 2210.01241: plain squared value error, no clip, gamma 0.99; beta by the mean KL of a token, gain 0.1.
    "rl4lms": {
        "epochs": 5,
        "minibatches": 1,
        "value_loss": "squared",
        "value_coefficient": 0.5,
        "gamma": 0.99,
        "whitening": "deviation",
        "whiten_scope": "minibatch",
        "kl": {
            "kind": "adaptive",
            "coefficient": 0.001,
            "target": 1.0,
            "per_token": True,
            "gain": 0.1,
        },
    },
}

UNCLIPPED = 1e30
"""max_grad_norm of those that do not clip: no gradient's norm reaches it."""

AROUND: dict[str, dict[str, dict[str, Any]]] = {
    # Completions of a fixed length: no end token is drawn. Adam is TensorFlow's; LHP's minimize clips nothing.
    "openai-2019": {
        "optimiser": {
            "learning_rate": 1e-5,
            "schedule": "linear",
            "eps": 1e-5,
            "eps_form": "tensorflow",
            "max_grad_norm": UNCLIPPED,
        },
        "sampling": {"temperature": 0.7, "fixed_length": True},
    },
    # A constant rate after ten steps of warm-up; weights averaged with 0.992.
    "instructgpt": {
        "optimiser": {"schedule": "constant", "warmup_steps": 10, "weight_average": 0.992},
        "sampling": {"temperature": 1.0},
    },
    # TRL's PPO takes no notice of its max_grad_norm: ppo_trainer.py has backward and step alone.
    "trl": {
        "optimiser": {
            "learning_rate": 3e-6,
            "schedule": "linear",
            "eps": 1e-8,
            "max_grad_norm": UNCLIPPED,
        },
        "sampling": {"temperature": 0.7},
    },
    # accelerate_base_trainer.py clips nothing; some of its DeepSpeed files do.
    "trlx": {
        "optimiser": {"schedule": "constant", "betas": (0.9, 0.95), "max_grad_norm": UNCLIPPED},
        "sampling": {"temperature": 1.0},
    },
    "rl4lms": {
        "optimiser": {"schedule": "constant", "max_grad_norm": 0.5},
        "sampling": {"temperature": 1.0},
    },
}

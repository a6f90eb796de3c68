"""Updates of TRL 1.12's PPO: python -m benchmarks.peers.trl_ppo cases.pt answers.pt, in that TRL's environment.

Its loss is written out inside `PPOTrainer.train`, so that is what runs: tiny models with random weights sample, score
and learn. At each backward pass the rollouts, what the models say now, the loss and its gradients by just that are
taken from the frame that calls it; nothing of it is changed.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-untyped,import-not-found,unused-ignore]
from transformers import LlamaConfig, LlamaForSequenceClassification, set_seed
from trl.experimental.ppo import PPOConfig, PPOTrainer  # type: ignore[import-not-found]  # in its own environment alone

from benchmarks.peers.tiny import SIZES, model, tokenizer

ROWS, LONGEST = 32, 6


def trainer_of(settings: dict[str, Any], folder: str) -> Any:
    """A trainer with a policy, a reference, a reward model and a value model of their own."""
    torch.use_deterministic_algorithms(True)
    set_seed(settings["seed"])
    config = PPOConfig(
        output_dir=folder,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=ROWS // settings["num_mini_batches"],
        gradient_accumulation_steps=settings["num_mini_batches"],
        total_episodes=ROWS,
        num_sample_generations=0,
        save_strategy="no",
        response_length=LONGEST,
        stop_token="eos",  # noqa: S106 - a word of TRL's
        learning_rate=0.03,  # the ratio is to leave the clip
        **{name: value for name, value in settings.items() if name != "seed"},
    )
    words = tokenizer()
    words.padding_side = "left"
    prompts = Dataset.from_list([{"input_ids": [2 + at % 6, 3]} for at in range(ROWS)])
    scorers = [LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1)) for _ in range(2)]
    with torch.no_grad():
        for one in scorers:
            one.score.weight *= 20  # scores and values of a size that matters
    return PPOTrainer(
        config, words, model(), model(), scorers[0], prompts, scorers[1], eval_dataset=prompts.select([0, 1])
    )


def updates_of(settings: dict[str, Any]) -> dict[str, Any]:
    """One batch: its rollouts, and every update on it."""
    found: dict[str, Any] = {"updates": []}
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(settings, folder)
        backward = trainer.accelerator.backward

        def watched(loss: torch.Tensor, **options: Any) -> None:
            told = sys._getframe(1).f_locals
            found["mask"], found["value_mask"] = ~told["padding_mask"], ~told["padding_mask_p1"]
            found.update(
                {name: told[name].clone() for name in ("logprobs", "ref_logprobs", "values", "scores")}
            )
            now = [told["new_logprobs"], told["vpred"]]
            gradients = torch.autograd.grad(loss, now, retain_graph=True)
            found["updates"].append(
                {
                    "rows": told["micro_batch_inds"].tolist(),
                    "current": [one.detach().clone() for one in now],
                    "loss": loss.detach().clone(),
                    "gradients": [one.clone() for one in gradients],
                }
            )
            backward(loss, **options)

        trainer.accelerator.backward = watched
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
    return found


def main() -> None:
    """Settings from the first file, rollouts and updates to the second."""
    source, target = sys.argv[1:]
    cases = torch.load(source, weights_only=True)
    torch.save({"ppo": [updates_of(case) for case in cases["ppo"]]}, target)


if __name__ == "__main__":
    main()

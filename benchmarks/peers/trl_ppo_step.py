"""A few steps of TRL 1.12's PPOTrainer, timed: run by benchmarks.step in that TRL's environment.

    python -m benchmarks.peers.trl_ppo_step JOB.json

One epoch, one minibatch, with a reward model and a value model of the policy's size. Seconds of each step go to `out`.
Knows nothing of Trimtab.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-untyped,import-not-found,unused-ignore]
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer  # type: ignore[import-not-found]  # in its own environment alone

from benchmarks.peers.trl_clock import Clock


def config_of(job: dict[str, Any], folder: str) -> PPOConfig:
    """TRL's defaults but for what the job says."""
    rows = job["prompts"] * job["completions"]
    return PPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=job["bfloat16"],
        gradient_checkpointing=False,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=1,
        local_rollout_forward_batch_size=rows,
        total_episodes=rows * job["steps"],
        num_sample_generations=0,
        response_length=job["new_tokens"],
        temperature=1.0,
        learning_rate=job["learning_rate"],
        seed=job["seed"],
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def main() -> None:
    """Train as the job says."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    prompts = Dataset.from_list([{"input_ids": tokenizer(text)["input_ids"]} for text in job["texts"]])
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32) for _ in range(2)
    )
    scorers = [
        AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1, dtype=torch.float32)
        for _ in range(2)
    ]
    for one in (policy, reference, *scorers):
        one.config.pad_token_id = tokenizer.pad_token_id
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            config_of(job, folder),
            tokenizer,
            policy,
            reference,
            scorers[0],
            prompts,
            scorers[1],
            eval_dataset=prompts.select([0, 1]),
            callbacks=[clock],
        )
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
    Path(job["out"]).write_text(json.dumps({"seconds": clock.seconds, "rewards": []}))


if __name__ == "__main__":
    main()

"""TRL's GRPOTrainer, a few steps timed or many steps learnt: run by benchmarks.step in TRL's environment.

    python -m benchmarks.peers.trl_grpo JOB.json

JOB.json: the settings of benchmarks.step_sides.Job. The reward is VADER's compound score of the completion. `out` gets
the seconds of each step, the mean reward of each step's completions and, where `model_out` names a folder, the trained
model is there. Knows nothing of Trimtab.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-untyped,import-not-found,unused-ignore]
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found,unused-ignore]
from vaderSentiment.vaderSentiment import (  # type: ignore[import-untyped,unused-ignore]
    SentimentIntensityAnalyzer,
)

from benchmarks.peers.trl_clock import Clock

_ANALYSER = SentimentIntensityAnalyzer()


def sentiment(completions: list[str], **_: Any) -> list[float]:
    """VADER's compound score, -1 to 1."""
    return [_ANALYSER.polarity_scores(one)["compound"] for one in completions]


def config_of(job: dict[str, Any], folder: str) -> GRPOConfig:
    """Its documentation's settings for a machine like this one; what is left out is TRL's default."""
    generation = dict(job.get("generation") or {})
    if job["fixed_length"]:
        generation["min_new_tokens"] = job["new_tokens"]
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=job["bfloat16"],
        gradient_checkpointing=False,
        per_device_train_batch_size=job["prompts"] * job["completions"],
        num_generations=job["completions"],
        max_completion_length=job["new_tokens"],
        generation_kwargs=generation,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=job["beta"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        max_steps=job["steps"],
        seed=job["seed"],
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def main() -> None:
    """Train as the job says."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=sentiment,
            args=config_of(job, folder),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in job["texts"]]),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    if job["model_out"]:
        trainer.model.save_pretrained(job["model_out"])
        tokenizer.save_pretrained(job["model_out"])
    Path(job["out"]).write_text(json.dumps({"seconds": clock.seconds, "rewards": clock.rewards}))


if __name__ == "__main__":
    main()

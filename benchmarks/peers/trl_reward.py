"""TRL's RewardTrainer on pairs, as its documentation sets it up: run by benchmarks.reward_model in TRL's environment.

    python -m benchmarks.peers.trl_reward JOB.json

JOB.json: model, train and held_out (TRL's conversational rows), out (a file), and the settings of `Job`. What comes
out: seconds from the rows to the trained model (tokenising and steps, not the loading of the model), steps, and for
each held-out row the score of the chosen answer minus that of the rejected one. Knows nothing of Trimtab.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def trained(job: dict[str, Any]) -> tuple[Any, float]:
    """The trainer after training, and how long it took from the rows on."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer  # type: ignore[import-not-found, unused-ignore]

    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    torch.manual_seed(job["seed"])
    model = AutoModelForSequenceClassification.from_pretrained(
        job["model"], num_labels=1, dtype=torch.float32
    )
    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            output_dir=folder,
            learning_rate=job["learning_rate"],
            per_device_train_batch_size=job["batch_pairs"],
            num_train_epochs=job["epochs"],
            max_steps=job["max_steps"] or -1,
            warmup_steps=job["warmup_share"],
            lr_scheduler_type="linear",
            weight_decay=job["weight_decay"],
            max_length=None,  # the rows are chosen by length already
            bf16=job["bfloat16"],
            use_cpu=True,
            gradient_checkpointing=False,  # 20 % faster without, says its documentation, and memory is there
            seed=job["seed"],
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_steps=1000,
            dataloader_pin_memory=False,
        )
        began = time.perf_counter()
        trainer = RewardTrainer(
            model=model,
            args=config,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(job["train"]),
        )
        trainer.train()
        return trainer, time.perf_counter() - began


def margins(trainer: Any, rows: list[dict[str, Any]], *, bfloat16: bool) -> list[float]:
    """Chosen minus rejected, row by row, alone in its batch: no padding has a say.

    In the precision of the training, as the trainer's own evaluation is.
    """
    import torch

    found = []
    model = trainer.model.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        for row in rows:
            scores = [
                model(
                    **trainer.processing_class.apply_chat_template(
                        row["prompt"] + row[side], return_tensors="pt", return_dict=True
                    )
                ).logits.item()
                for side in ("chosen", "rejected")
            ]
            found.append(scores[0] - scores[1])
    return found


def main() -> None:
    """Train, judge the held-out rows, write what came out."""
    job = json.loads(Path(sys.argv[1]).read_text())
    trainer, seconds = trained(job)
    out = {
        "seconds": seconds,
        "steps": trainer.state.global_step,
        "margins": margins(trainer, job["held_out"], bfloat16=job["bfloat16"]),
    }
    Path(job["out"]).write_text(json.dumps(out))


if __name__ == "__main__":
    main()

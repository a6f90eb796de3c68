"""A reward model of a tiny base by the RewardTrainer that is installed: run by test_trl_reward_model.py, not by pytest.

    python reward_model_with_trl.py JOB.json

JOB.json: model (a folder), rows (TRL's conversational pairs, taken in this order), batch, learning_rate, head and out
(files). What comes out: the loss of each update, and each row's score of the chosen answer less that of the rejected
one after the last. The head as it was drawn is written down first.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer


class InOrder(RewardTrainer):
    """Takes the rows as they stand."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Losses(TrainerCallback):
    """Keeps the loss of each update."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """After each update, and once at the end, of the whole."""
        if "loss" in logs:
            self.found.append(float(logs["loss"]))


def main() -> None:
    """Train, judge the same rows, write what came out."""
    job, losses = json.loads(Path(sys.argv[1]).read_text()), Losses()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(
        job["model"], num_labels=1, dtype=torch.float32
    )
    save_file({"weight": model.score.weight.detach().clone()}, job["head"])
    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            output_dir=folder,
            learning_rate=job["learning_rate"],
            lr_scheduler_type="constant",
            per_device_train_batch_size=job["batch"],
            num_train_epochs=1,
            weight_decay=0.0,
            max_length=None,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_steps=1,
            dataloader_pin_memory=False,
        )
        InOrder(
            model=model,
            args=config,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(job["rows"]),
            callbacks=[losses],
        ).train()
    model.eval()

    def score(messages: list[dict[str, str]]) -> float:
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            return float(model(**ids).logits.item())

    margins = [
        score(row["prompt"] + row["chosen"]) - score(row["prompt"] + row["rejected"]) for row in job["rows"]
    ]
    Path(job["out"]).write_text(json.dumps({"losses": losses.found, "margins": margins}))


if __name__ == "__main__":
    main()

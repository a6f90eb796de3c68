"""TRL's own losses of given tensors: python -m benchmarks.peers.trl_losses cases.pt answers.pt, in TRL's environment.

Its trainers are made as usual. In the models' place stand given log-probs, in the generator's given completions, in
the reward function's given scores; advantages, importance and losses are what TRL's own methods make of them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-untyped,import-not-found,unused-ignore]
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # type: ignore[import-not-found]  # in its own environment alone

from benchmarks.peers.tiny import PAD, Given, model, tokenizer

PROMPT = [2, 3]
Case = dict[str, Any]
Answer = dict[str, Any]


def completions(mask: torch.Tensor) -> list[list[int]]:
    """Ids of as many tokens as each row counts."""
    return [[2 + at % 6 for at in range(length)] for length in mask.sum(-1).int().tolist()]


def online(kind: str, trainer: Any, case: Case) -> Answer:
    """One case of GRPO or RLOO, from scores to the loss's gradient by the current log-probs."""
    settings, mask = case["settings"], case["mask"]
    rows, width = mask.shape
    for name, value in settings.items():
        setattr(trainer.args, name, value)
    trainer.beta, trainer.num_generations = settings["beta"], settings["num_generations"]
    trainer.epsilon_low = settings["epsilon"]
    trainer.epsilon_high = settings["epsilon_high"] or settings["epsilon"]
    if kind == "grpo":
        trainer.loss_type, trainer.scale_rewards = settings["loss_type"], settings["scale_rewards"]
        trainer.importance_sampling_level = settings["importance_sampling_level"]
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
        trainer.vllm_importance_sampling_mode = case["mode"]
        trainer.vllm_importance_sampling_clip_min, trainer.vllm_importance_sampling_clip_max = case["clips"]
        trainer.max_completion_length = width
    else:
        trainer.normalize_advantages = settings["normalize_advantages"]
    ids = completions(mask)
    sampled = [row[: len(given)].tolist() for row, given in zip(case["behaviour"], ids, strict=True)]
    trainer._generate_single_turn = lambda *_: (ids, sampled) if kind == "grpo" else ids
    scores: list[float] = case["scores"].tolist()
    trainer.reward_funcs = [lambda **_: scores]
    lead = torch.zeros(rows, len(PROMPT) - 1)
    now = torch.cat([lead, case["current"]], 1).requires_grad_()
    trainer.model = Given(torch.cat([lead, case["old"]], 1), now)
    trainer.ref_model = Given(torch.cat([lead, case["reference"]], 1))
    batch = trainer._generate_and_score_completions([{"prompt": "a b"}] * rows)
    loss = trainer._compute_loss(trainer.model, batch)
    gradient = torch.autograd.grad(loss, now)[0][:, lead.shape[1] :]
    return {"loss": loss.detach(), "gradients": [gradient]}


def dpo(trainer: Any, case: Case) -> Answer:
    """One case of DPO: rows are first the chosen, then the rejected; the gradient is by their tokens' log-probs."""
    mask = torch.cat([case["chosen_mask"], case["rejected_mask"]])
    rows, width = mask.shape
    ids = torch.full((rows, len(PROMPT) + width), PAD)
    ids[:, : len(PROMPT)] = torch.tensor(PROMPT)
    ids[:, len(PROMPT) :][mask > 0] = 4
    counts = torch.cat([torch.zeros(rows, len(PROMPT)), mask], 1).long()
    lead = torch.zeros(rows, len(PROMPT) - 1)

    def whole(name: str) -> torch.Tensor:
        return torch.cat([lead, torch.cat([case[f"chosen_{name}"], case[f"rejected_{name}"]])], 1)

    now = whole("policy").requires_grad_()
    trainer.beta, trainer.label_smoothing = case["settings"]["beta"], case["settings"]["label_smoothing"]
    trainer.loss_types, trainer.loss_weights = [case["loss_type"]], [1.0]
    trainer.precompute_ref_logps = False
    trainer.model, trainer.ref_model = Given(whole("policy"), now), Given(whole("reference"))
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.cat([torch.ones(rows, len(PROMPT)), mask], 1).long(),
        "completion_mask": counts,
    }
    loss = trainer._compute_loss(trainer.model, inputs, False)
    gradient = torch.autograd.grad(loss, now)[0][:, lead.shape[1] :]
    half = rows // 2
    return {"loss": loss.detach(), "gradients": [gradient[:half], gradient[half:]]}


def trainers(folder: str, rows: int) -> dict[str, Any]:
    """One trainer of each kind, on the processor."""
    shared: dict[str, Any] = {
        "output_dir": folder,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": rows,
    }
    groups = {"num_generations": 4, "beta": 0.1, "max_completion_length": 6}
    prompts = Dataset.from_list([{"prompt": "a b"}] * rows)
    pairs = Dataset.from_list([{"prompt": "a b", "chosen": "c d", "rejected": "e"}] * rows)

    def scored(**_: Any) -> list[float]:
        return [0.0] * rows

    # From a folder: a reference is loaded from where the policy came from.
    source = str(Path(folder) / "model")
    model().save_pretrained(source)
    made = {
        "grpo": GRPOTrainer(
            source, [scored], GRPOConfig(**shared, **groups), prompts, processing_class=tokenizer()
        ),
        "rloo": RLOOTrainer(
            source, [scored], RLOOConfig(**shared, **groups), prompts, processing_class=tokenizer()
        ),
        "dpo": DPOTrainer(
            source, None, DPOConfig(**shared), train_dataset=pairs, processing_class=tokenizer()
        ),
    }
    for trainer in made.values():
        trainer.current_gradient_accumulation_steps = 1
    return made


def main() -> None:
    """Cases from the first file, answers to the second."""
    source, target = sys.argv[1:]
    cases: dict[str, list[Case]] = torch.load(source, weights_only=True)
    with tempfile.TemporaryDirectory() as folder:
        made = trainers(folder, len(cases["grpo"][0]["mask"]))
        answers = {
            kind: [online(kind, made[kind], case) for case in cases[kind]] for kind in ("grpo", "rloo")
        }
        answers["dpo"] = [dpo(made["dpo"], case) for case in cases["dpo"]]
    torch.save(answers, target)


if __name__ == "__main__":
    main()

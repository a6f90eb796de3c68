"""verl's own reward managers over the adapter: run by test_trainers.py in verl's environment, not by pytest.

    python score_with_verl.py MODEL_FOLDER ROWS_JSON

Loads the reward function as verl does from its configuration, and gives rows to the manager of the reward loop and to
the batch manager. TRIMTAB_TARGET names the service. On stdout one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.workers.reward_manager.batch import BatchRewardManager


def reward_function(name: str) -> Any:
    """As verl makes it of `reward.custom_reward_function`."""
    function = {"path": "pkg://trimtab.verl", "name": name, "reward_kwargs": {"model": "hh"}}
    return get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": function}}))


def batch_of(rows: list[dict[str, str]], tokenizer: Any) -> DataProto:
    """Prompts padded left, answers padded right, as a rollout leaves them."""
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    answers = [tokenizer(row["answer"])["input_ids"] for row in rows]
    wide, long = max(map(len, prompts)), max(map(len, answers))
    pad = tokenizer.pad_token_id
    return DataProto.from_dict(
        tensors={
            "prompts": torch.tensor([[pad] * (wide - len(ids)) + ids for ids in prompts]),
            "responses": torch.tensor([ids + [pad] * (long - len(ids)) for ids in answers]),
            "attention_mask": torch.tensor(
                [
                    [0] * (wide - len(prompt))
                    + [1] * (len(prompt) + len(answer))
                    + [0] * (long - len(answer))
                    for prompt, answer in zip(prompts, answers, strict=True)
                ]
            ),
        },
        non_tensors={
            "data_source": objects("test" for _ in rows),
            "reward_model": objects({"ground_truth": row["answer"]} for row in rows),
            "extra_info": objects({"question": row["prompt"], "index": at} for at, row in enumerate(rows)),
        },
    )


def objects(values: Any) -> Any:
    """[rows] object, also of dictionaries."""
    listed = list(values)
    array = np.empty(len(listed), dtype=object)
    array[:] = listed
    return array


async def one_by_one(name: str, rows: list[dict[str, str]], tokenizer: Any) -> list[float]:
    """By the reward loop's manager, all rows at once."""
    manager = NaiveRewardManager(OmegaConf.create({}), tokenizer, reward_function(name))
    data = batch_of(rows, tokenizer)
    answers = await asyncio.gather(*(manager.run_single(data[at : at + 1]) for at in range(len(rows))))
    return [answer["reward_score"] for answer in answers]


def as_a_batch(rows: list[dict[str, str]], tokenizer: Any) -> list[float]:
    """By the batch manager: each row's reward stands at its last token."""
    manager = BatchRewardManager(tokenizer, 0, reward_function("compute_score_batch"))
    return manager(batch_of(rows, tokenizer)).sum(dim=1).tolist()


def main() -> None:
    """Score by every way."""
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    rows = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    found = {
        name: asyncio.run(one_by_one(name, rows, tokenizer))
        for name in ("compute_score", "compute_score_async")
    }
    print(json.dumps(found | {"compute_score_batch": as_a_batch(rows, tokenizer)}))


if __name__ == "__main__":
    main()

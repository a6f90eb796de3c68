"""The reward-model job around its training: files in, a folder and a report out.

The folder is what the reward service loads (`path = "…"`), with the card, the plot and the report in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.common.comparisons import read
from services.common.errors import InvalidInput
from services.common.folders import written
from services.learner.checkpoints import storage_errors
from services.learner.jobs import model_card
from services.learner.jobs.comparisons import Compared, by_prompt
from services.learner.jobs.demonstrations import read_demonstrations
from services.learner.jobs.folder import REPORT_FILE, prepared, write_report
from services.learner.jobs.reward_model import RewardReport, RewardTraining, train
from services.learner.jobs.scatter import scatter
from services.models.reward_model import SETTINGS_FILE, RewardModel, new_reward_model
from services.models.scorer import ScoreText


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardJob:
    """Files and model. `pairs` and `pretraining`: anything that services.common.comparisons reads."""

    pairs: str
    model: str
    out: Path
    report: Path | None = None
    pretraining: str = ""
    reference: Path | None = None
    skip_bad_rows: bool = False
    max_tokens: int = 512
    threads: int = 0
    dtype: str = "auto"


def run_job(job: RewardJob, options: RewardTraining) -> None:
    """Read comparisons, train, write the model's folder and the report, print the figures."""
    out = prepared(job.out, SETTINGS_FILE, job.report)
    prompts = load(job.pairs, skip_bad_rows=job.skip_bad_rows)
    pretraining = load(job.pretraining, skip_bad_rows=job.skip_bad_rows) if job.pretraining else []
    reference = [
        ScoreText(row.messages, row.answer)
        for row in (read_demonstrations(job.reference) if job.reference else [])
    ]
    if reference and len(set(reference)) < 2:
        raise InvalidInput(f"{job.reference}: one answer sets no scale: at least two are needed that differ")
    model = new_reward_model(
        job.model, dtype=job.dtype, threads=job.threads, seed=options.seed, max_tokens=job.max_tokens
    )
    prompts = readable(model, prompts, skip=job.skip_bad_rows)
    pretraining = readable(model, pretraining, skip=job.skip_bad_rows)
    report = train(model, prompts, options, _say, pretraining=pretraining, reference=reference)
    told = as_json(report) | {"model": job.model}
    with storage_errors(f"the reward model in {job.out}"), written(out, replace=True) as folder:
        model.save(folder)
        (folder / "README.md").write_text(model_card.card(told, asdict(options)), encoding="utf-8")
        (folder / model_card.PLOT_FILE).write_text(_plot(report.plotted.lengths, report.plotted.scores))
        write_report(told, folder / REPORT_FILE)
    for line in model_card.lines(told):
        print(line, file=sys.stderr, flush=True)
    write_report(told, job.report)


def load(source: str, *, skip_bad_rows: bool = False) -> list[Compared]:
    """The comparisons of a source by prompt. Raises InvalidInput for bad rows, or where there is nothing to learn."""
    reading = read(source, skip_bad_rows=skip_bad_rows)
    prompts = by_prompt(reading)
    found = reading.report
    if found.bad_rows or found.duplicates or found.disagreements or found.empty_answers:
        for line in found.lines():
            print(f"{source}: {line}", file=sys.stderr, flush=True)
    if not prompts:
        raise InvalidInput(f"{source}: there is no comparison in it")
    return prompts


def readable(model: RewardModel, prompts: Sequence[Compared], *, skip: bool) -> list[Compared]:
    """The prompts whose messages the model's chat template takes, before hours go into the others.

    Raises InvalidInput with the place of one that it refuses, or leaves such prompts out and says how many.
    """
    read, refused = [], []
    for prompt in prompts:
        try:
            model.prompt_text(prompt.messages)
        except InvalidInput as error:
            refused.append(f"{prompt.place}: prompt: {error}")
            if not skip:
                raise InvalidInput(refused[0]) from None
        else:
            read.append(prompt)
    if refused:
        print(f"{len(refused)} prompts left out, first {refused[0]}", file=sys.stderr, flush=True)
    return read


def as_json(report: RewardReport) -> dict[str, Any]:
    """The report flat, without what the plot alone needs."""
    rest = {
        name: value
        for name, value in asdict(report).items()
        if name not in ("evaluation", "plotted", "margins")
    }
    return asdict(report.evaluation) | rest


def _plot(lengths: Sequence[int], scores: Sequence[float]) -> str:
    return scatter(
        lengths,
        scores,
        title="Score against length, held-out answers",
        x_label="characters",
        y_label="score",
    )


def _say(done: int, total: int, loss: float, accuracy: float) -> None:
    line = {
        "event": "progress",
        "step": done,
        "steps": total,
        "loss": round(loss, 4),
        "accuracy": round(accuracy, 4),
    }
    print(json.dumps(line), flush=True)

"""How good models are at a task: answers, metrics with intervals, differences on the same prompts.

    prompts ──▶ each model answers ──▶ metrics ──▶ value [95 %]      and from the second model on: minus the first's
                                  └──▶ a judge's log-probs, where perplexity is asked for

Owns the course of it; what a metric is stands in services/common/metrics, who answers in answerers.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.errors import InvalidInput
from services.common.metrics import Metric, Sample, make_metric
from services.common.metrics.intervals import Estimate, Groups, Measured, difference, estimate, measure
from services.common.spec.service import Dtype, ModelSpec
from services.common.tasks.base import Split, Task, TaskRow
from services.common.tasks.registry import task_rows
from services.learner.jobs.answerers import Answered, Named, Sampling, answers, judged, model_folder
from services.models.loading import load_causal

REWARD = "reward"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvaluation:
    """What is evaluated, on what, by what. prompts: at most; prompt_characters: of a prompt, at most, 0 any."""

    task: Task
    models: Sequence[Named]
    metrics: Sequence[str]
    sampling: Sampling
    prompts: int
    data: str = ""
    split: Split = "test"
    prompt_characters: int = 0
    judge: str = ""
    dtype: Dtype = "auto"
    threads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One model's figures, its differences from the first model (none for the first itself), and its answers."""

    label: str
    values: dict[str, Estimate]
    differences: dict[str, Estimate]
    groups: Groups


def metric_specs(task: Task, given: Sequence[str], *, judge: bool) -> list[str]:
    """The given metrics, or the task's reward, its metrics, and perplexity where there is a model to judge by."""
    if given:
        if "perplexity" in given and not judge:
            raise InvalidInput("--metric perplexity needs --judge MODEL, under which it is measured")
        if REWARD in given and not task.reward:
            raise InvalidInput(f"--metric reward: task {task.name} has no reward of its own")
        return list(dict.fromkeys(given))
    own = ([REWARD] if task.reward else []) + list(task.metrics)
    return [*own, *(["perplexity"] if judge else [])]


def evaluate(asked: TaskEvaluation, heard: Callable[[str], None]) -> list[Column]:
    """All of it, model by model; `heard` hears one line for a person. Raises the error tree."""
    metrics = {
        spec: make_metric(asked.task.reward if spec == REWARD else spec) for spec in asked.metrics
    }  # before a model is loaded: a library may be missing
    rows = _rows(asked)
    _check_references(metrics, rows)
    answered = [
        answers(
            who,
            rows,
            asked.sampling,
            dtype=asked.dtype,
            threads=asked.threads,
            heard=_counting(who.label, heard),
        )
        for who in asked.models
    ]
    logprobs = _judged(asked, rows, answered, needed="perplexity" in metrics)
    columns: list[Column] = []
    first: dict[str, Measured] = {}
    for who, given, judgement in zip(asked.models, answered, logprobs, strict=True):
        groups = [_samples(row, *each) for row, *each in zip(rows, given, judgement, strict=True)]
        measured = {spec: measure(metric, groups) for spec, metric in metrics.items()}
        columns.append(
            Column(
                label=who.label,
                values={spec: estimate(one) for spec, one in measured.items()},
                differences={spec: difference(first[spec], one) for spec, one in measured.items() if first},
                groups=groups,
            )
        )
        first = first or measured
    return columns


def as_json(asked: TaskEvaluation, columns: Sequence[Column]) -> dict[str, Any]:
    """Everything but the answers."""
    sampling = asked.sampling
    return {
        "task": asked.task.name,
        "data": asked.data or asked.task.own_data,
        "split": asked.split,
        "reward": asked.task.reward,
        "judge": asked.judge,
        "prompts": len(columns[0].groups),
        "completions": sampling.completions,
        "seed": sampling.seed,
        "temperature": sampling.temperature,
        "max_new_tokens": sampling.max_new_tokens,
        "models": [
            {
                "label": column.label,
                "model": who.place,
                "metrics": {spec: one.as_json() for spec, one in column.values.items()},
                "minus_first": {spec: one.as_json() for spec, one in column.differences.items()},
            }
            for who, column in zip(asked.models, columns, strict=True)
        ],
    }


def save_answers(path: Path, columns: Sequence[Column]) -> None:
    """JSON lines: label, prompt, completion, references."""
    with path.open("w", encoding="utf-8") as file:
        for column in columns:
            for sample in (sample for group in column.groups for sample in group):
                row = {
                    "model": column.label,
                    "prompt": sample.prompt,
                    "completion": sample.completion,
                    "references": list(sample.references),
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _counting(label: str, heard: Callable[[str], None]) -> Callable[[int, int], None]:
    return lambda done, all_: heard(f"{label}: {done} of {all_} answers")


def _rows(asked: TaskEvaluation) -> list[TaskRow]:
    rows = task_rows(
        asked.task,
        data=asked.data,
        split=asked.split,
        limit=None if asked.prompt_characters else asked.prompts,
        seed=asked.sampling.seed,
    )
    if asked.prompt_characters:
        rows = [row for row in rows if len(row.text) <= asked.prompt_characters][: asked.prompts]
    if not rows:
        raise InvalidInput(
            f"task {asked.task.name}: no prompt has at most {asked.prompt_characters} characters"
        )
    return rows


def _check_references(metrics: dict[str, Metric], rows: Sequence[TaskRow]) -> None:
    """Before a model answers: that takes minutes."""
    needing = [spec for spec, metric in metrics.items() if "references" in metric.needs]
    without = next((row for row in rows if not any(text.strip() for text in row.references)), None)
    if needing and without is not None:
        raise InvalidInput(
            f"metric {needing[0]} needs references, and the prompt {without.text[:40]!r} has none: "
            "choose others with --metric"
        )


def _judged(
    asked: TaskEvaluation, rows: Sequence[TaskRow], answered: Sequence[list[list[Answered]]], *, needed: bool
) -> list[list[list[Any]]]:
    if not needed:
        return [[[None] * len(group) for group in given] for given in answered]
    judge = load_causal(ModelSpec(path=model_folder(asked.judge), dtype=asked.dtype, threads=asked.threads))
    return [judged(judge, rows, [[one.text for one in group] for group in given]) for given in answered]


def _samples(row: TaskRow, answered: Sequence[Answered], logprobs: Sequence[Any]) -> list[Sample]:
    return [
        Sample(
            prompt=row.text,
            completion=one.text,
            references=row.references,
            columns=row.all_columns,
            logprobs=values,
            tokens=one.tokens,
        )
        for one, values in zip(answered, logprobs, strict=True)
    ]

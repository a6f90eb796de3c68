"""The table of an evaluation, for people. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from services.common.metrics import make_metric
from services.common.metrics.intervals import Estimate
from services.learner.jobs.task_evaluation import REWARD, Column, TaskEvaluation

_ARROWS = {"higher": "↑", "lower": "↓", "neither": " "}


def print_table(asked: TaskEvaluation, columns: Sequence[Column], console: Console | None = None) -> None:
    """A row for each metric, a column for each model and for each difference from the first."""
    sampling = asked.sampling
    table = Table(
        title=f"{asked.task.name}: {len(columns[0].groups)} prompts, {sampling.completions} each, "
        f"seed {sampling.seed}, temperature {sampling.temperature:g}",
        caption="95 % intervals over prompts; * the interval of the difference leaves 0 out",
    )
    table.add_column("metric", no_wrap=True)
    for column in columns:
        table.add_column(column.label, justify="right")
    for column in columns[1:]:
        table.add_column(f"{column.label} - {columns[0].label}", justify="right")
    for spec in asked.metrics:
        name = f"{spec} ({asked.task.reward.partition(',')[0]})" if spec == REWARD else spec
        arrow = _ARROWS[make_metric(asked.task.reward if spec == REWARD else spec).better]
        table.add_row(
            f"{name} {arrow}",
            *(shown(column.values[spec]) for column in columns),
            *(shown(column.differences[spec], signed=True) for column in columns[1:]),
        )
    (console or Console()).print(table)


def shown(found: Estimate, *, signed: bool = False) -> str:
    """A value with its interval; a difference with its sign, and * where it is not 0."""
    form = "{:+.3f}" if signed else "{:.3f}"
    if found.low is None or found.high is None:
        return form.format(found.value)
    star = " *" if signed and not found.low <= 0 <= found.high else ""
    return f"{form.format(found.value)} [{form.format(found.low)}, {form.format(found.high)}]{star}"

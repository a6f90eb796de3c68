"""The report of a run: one HTML page that needs nothing else, made from the files in the run's folder.

Answers of a model are untrusted text: every value passes through autoescape, the page carries no script and a
policy that forbids any request. Refuses to know how the figures were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.demo import panels, watching, wording
from orchestrator.demo.charts import Plot, line_chart
from orchestrator.demo.files import write_atomically
from orchestrator.demo.marks import Part, interval_mark, proportion_bar, shift_mark
from orchestrator.demo.run_folder import Rating, RunFiles, Sample, read_run
from orchestrator.demo.scales import finite, number
from orchestrator.demo.summary import RolloutCounts, Summary

REPORT_FILE = "report.html"
SAMPLES_SHOWN = 24
WIDE = 440, 225
"""Units of a chart that takes half the page: few enough that its text can be read on a phone."""


@dataclass(frozen=True)
class Tile:
    """One figure at the top: label, value, a line below, and perhaps a mark."""

    label: str
    value: str
    note: str = ""
    mark: Markup | None = None


@dataclass(frozen=True)
class Chart:
    """One drawn chart with its last value."""

    title: str
    note: str
    last: str
    legend: Sequence[tuple[str, int]]
    svg: Markup


@dataclass(frozen=True)
class Bar:
    """A bar of shares with its parts, each with its share in words."""

    title: str
    svg: Markup
    parts: Sequence[Part]


def write_report(folder: Path) -> Path:
    """Write `report.html` into the run's `folder` from the files there, and return its path.

    Absent or broken files are named on the page. Raises NotFound if the folder is not there.
    """
    path = folder / REPORT_FILE
    write_atomically(path, render(read_run(folder)))
    return path


def render(run: RunFiles) -> str:
    """The page for `run`: the same files always give the same text."""
    environment = Environment(
        loader=PackageLoader("orchestrator.demo"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "score": wording.score,
        "percent": wording.percent,
        "duration": wording.duration,
    }
    summary = run.summary
    return environment.get_template("report.html.j2").render(
        run=run,
        summary=summary,
        headline=wording.headline(summary) if summary else "",
        details=wording.details(summary) if summary else "",
        tiles=tiles(summary, run) if summary else [],
        main_charts=_charts(panels.MAIN, run, width=WIDE[0], height=WIDE[1]),
        detail_charts=_charts(panels.DETAIL, run),
        unrecorded=_unrecorded(run),
        reward_charts=_reward_charts(run),
        samples=[(sample, mark) for sample, mark in zip(run.samples, shift_marks(run.samples), strict=False)],
        samples_total=len(run.samples),
        ratings=[(rating, mark) for rating, mark in zip(run.ratings, rating_marks(run.ratings), strict=True)],
        watch_charts=[
            _chart(*noted) for noted in watching.main_plots(run.metrics, run.watch.window_steps, *WIDE)
        ],
        watch_details=[_chart(*noted) for noted in watching.detail_plots(run.metrics)],
        alarms=watching.alarm_rows(run.metrics, run.watch),
        rollouts=rollout_bar(summary.rollouts) if summary else None,
        time_bars=time_bars(run),
    )


def tiles(summary: Summary, run: RunFiles) -> list[Tile]:
    """The figures of the summary, the most important first."""
    high = summary.win_rate if summary.win_rate_high is None else summary.win_rate_high
    scores = (
        min(0.0, summary.score_before, summary.score_after),
        max(1.0, summary.score_before, summary.score_after),
    )
    return [
        Tile(
            "Win rate",
            wording.percent(summary.win_rate),
            wording.interval(summary),
            interval_mark(summary.win_rate_low, summary.win_rate, high, within=(0, 1), rule=0.5),
        ),
        Tile(
            "Annotator's score",
            number(summary.score_after),
            f"from {number(summary.score_before)} before",
            shift_mark(
                summary.score_before, summary.score_after, within=(min(scores), max(scores)), width=220
            ),
        ),
        Tile("Sequence KL", f"{number(summary.sequence_kl)} nats", "policy to reference, held-out prompts"),
        Tile("Length", wording.percent(summary.length_ratio), "of the mean length before"),
        Tile("Variety", wording.percent(summary.distinct_ratio), "of the distinct-2 before"),
        _reward_model_tile(summary, run),
        Tile("Time", wording.duration(summary.seconds), f"{summary.steps} steps of reinforcement learning"),
        Tile("Peak memory", f"{number(summary.peak_memory_gib)} GiB", "all processes of the run"),
        Tile("Generation", f"{number(summary.tokens_per_second)} tokens/s", "completion tokens"),
        Tile("Overhead", wording.percent(summary.overhead_share), "of a step outside the models, median"),
    ]


def _reward_model_tile(summary: Summary, run: RunFiles) -> Tile:
    file = run.reward_model
    note = "held-out pairs ranked as labelled"
    if file and file.accuracy_low is not None and file.accuracy_high is not None:
        note = (
            f"held-out pairs, {wording.percent(file.accuracy_low)} to {wording.percent(file.accuracy_high)}"
        )
    return Tile("Reward model", wording.percent(summary.reward_model_accuracy), note)


def _chart(plot: Plot, note: str) -> Chart:
    ends = [finite(y for _, y in series.points)[-1] for series in plot.series]
    legend = [(series.label, series.tone) for series in plot.series] if len(plot.series) > 1 else []
    return Chart(plot.title, note, number(ends[0]), legend, line_chart(plot))


def _charts(
    table: Sequence[panels.Panel], run: RunFiles, *, width: int = 360, height: int = 210
) -> list[Chart]:
    drawn = []
    for panel in table:
        plot = panels.plot_of(panel, run.metrics, width=width, height=height)
        if plot is not None:
            drawn.append(_chart(plot, panel.note))
    return drawn


def _unrecorded(run: RunFiles) -> list[str]:
    """Names of the metrics that metrics.jsonl lacks; none if it has no row, which is said elsewhere."""
    if not run.metrics:
        return []
    names = [name for panel in (*panels.MAIN, *panels.DETAIL) for name, _ in panel.curves]
    return [name for name in names if not any(name in row for row in run.metrics)]


def _reward_charts(run: RunFiles) -> list[Chart]:
    if run.reward_model is None:
        return []
    return [
        _chart(plot, note)
        for plot, note in panels.reward_model_plots(run.reward_model, width=WIDE[0], height=WIDE[1])
    ]


def shift_marks(samples: Sequence[Sample]) -> list[Markup]:
    """A mark of before and after for each of the samples that are shown, all on one scale."""
    shown = samples[:SAMPLES_SHOWN]
    scores = [score for sample in shown for score in (sample.score_before, sample.score_after)]
    within = (min([0.0, *scores]), max([0.0, *scores]))
    if within[0] == within[1]:
        within = (-1.0, 1.0)
    return [shift_mark(sample.score_before, sample.score_after, within=within) for sample in shown]


def rating_marks(ratings: Sequence[Rating]) -> list[Markup]:
    """The interval of each rating, all on one scale."""
    if not ratings:
        return []
    low, high = min(rating.low for rating in ratings), max(rating.high for rating in ratings)
    if low == high:
        low, high = low - 1, high + 1
    return [interval_mark(rating.low, rating.rating, rating.high, within=(low, high)) for rating in ratings]


def rollout_bar(counts: RolloutCounts) -> Bar:
    """What became of the admitted groups."""
    known = {
        "trained": (counts.trained, 2),
        "stale": (counts.stale, 3),
        "failed": (counts.failed, 5),
        "in flight": (counts.in_flight, 0),
    }
    parts = [Part(label, count, f"{count} groups", tone) for label, (count, tone) in known.items()]
    return Bar("Rollout groups", proportion_bar(parts, title="Rollout groups by what became of them"), parts)


def time_bars(run: RunFiles) -> list[Bar]:
    """Seconds by phase of the run, and by part of a mean step."""
    bars = []
    if run.summary and run.summary.phases:
        bars.append(_seconds_bar("The run", run.summary.phases))
    if step := panels.seconds_of_a_step(run.metrics):
        bars.append(_seconds_bar("A step, on average", step))
    return bars


def _seconds_bar(title: str, seconds: dict[str, float]) -> Bar:
    total = sum(seconds.values()) or 1.0
    parts = [
        Part(label, value, f"{wording.duration(value)}, {wording.percent(value / total, 0)}", index % 8)
        for index, (label, value) in enumerate(seconds.items())
    ]
    return Bar(
        f"{title}: {wording.duration(total)}", proportion_bar(parts, title=f"{title}, seconds by part"), parts
    )

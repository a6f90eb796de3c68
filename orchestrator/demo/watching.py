"""What the report shows of reward hacking: curves, the KL-reward frontier, alarms. Knows neither SVG nor HTML.

Reward and annotator have units of their own: both are drawn as the distance from their first window, in standard
deviations over its completions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.demo.charts import Plot, Series
from orchestrator.demo.panels import Metrics, Panel, plot_of
from orchestrator.demo.scales import number
from orchestrator.demo.wording import percent
from services.common.spec.watch import WatchSpec

Noted = tuple[Plot, str]
"""A plot and a line on how to read it."""
State = Literal["raised", "was raised", "quiet", "not judged"]
_JUDGES = (
    ("reward", "objective/scores", "objective/scores_std"),
    ("annotator", "annotator/mean", "annotator/std"),
)

EXPLORATION = (
    Panel(
        "Entropy of a token",
        (("policy/entropy_avg", "entropy"),),
        "nats",
        "What the policy still explores with; its collapse is an alarm.",
        include=(0.0,),
    ),
    Panel(
        "Sampling",
        (("sampling/temperature", "temperature"), ("sampling/top_p", "top-p")),
        "",
        "What each step's completions were drawn with.",
        include=(0.0, 1.0),
    ),
    Panel(
        "Entropy bonus",
        (("loss/entropy_avg", "bonus"),),
        "loss",
        "What the bonus takes from the loss; none without entropy_coefficient.",
        include=(0.0,),
    ),
    Panel(
        "Repetition",
        (("completions/repetition", "repetition"),),
        "% of 3-grams",
        "Token 3-grams that stood in the same completion before.",
        100.0,
        (0.0,),
    ),
)


@dataclass(frozen=True)
class AlarmRow:
    """One alarm in words. steps: how many raised it."""

    name: str
    meaning: str
    now: str
    bound: str
    state: State
    when: str


def judges(metrics: Metrics, window: int) -> list[Series]:
    """Reward and annotator over steps, each in deviations from its first window."""
    found = []
    for tone, (label, mean, deviation) in enumerate(_JUDGES):
        rows = [row for row in metrics if mean in row]
        first = [row[mean] for row in rows[:window] if math.isfinite(row[mean])]
        spread = [row.get(deviation, 0.0) for row in rows[:window]]
        if not first or not (unit := sum(spread) / len(spread)) > 0:
            continue
        base = sum(first) / len(first)
        points = [(row["step"], (row[mean] - base) / unit) for row in rows if "step" in row]
        found.append(Series(label, points, tone))
    return found


def main_plots(metrics: Metrics, window: int, width: int, height: int) -> list[Noted]:
    """Both judges over time, and over the distance from the reference."""
    curves = judges(metrics, window)
    if not curves:
        return []
    distance = {
        row["step"]: row["objective/kl"] for row in metrics if "objective/kl" in row and "step" in row
    }
    frontier = [
        Series(one.label, [(distance[step], y) for step, y in one.points if step in distance], one.tone)
        for one in curves
    ]
    unit = "deviations from the start"
    plots = [
        (
            Plot("Reward and annotator", curves, unit, include=(0.0,), width=width, height=height),
            "Where they part, the reward is being fooled."
            if len(curves) > 1
            else "Set watch.annotator_rule for a second opinion beside it.",
        )
    ]
    if any(one.points for one in frontier):
        plots.append(
            (
                Plot(
                    "KL-reward frontier", frontier, unit, "KL, nats", (), (0.0,), width, height, counted=False
                ),
                "What each nat from the reference has bought; the last step has the dot.",
            )
        )
    return plots


def detail_plots(metrics: Metrics) -> list[Noted]:
    """Parts of the reward, what goes with length, and exploration."""
    parts = _names(metrics, "rewards/", "/mean")
    panels = list(EXPLORATION)
    correlations = [
        (f"rewards/{part}/length_correlation", part if len(parts) > 1 else "reward") for part in parts
    ]
    correlations.append(("annotator/length_correlation", "annotator"))
    panels.insert(
        0,
        Panel(
            "Score with length",
            tuple(correlations),
            "correlation",
            "Within a step, over completions; near 1 the score pays for length.",
            include=(-1.0, 0.0, 1.0),
        ),
    )
    if len(parts) > 1:
        curves = tuple((f"rewards/{part}/mean", part) for part in parts)
        panels.insert(0, Panel("Parts of the reward", curves, "reward", "Means, before their weights."))
    agreed = (("annotator/score_correlation", "correlation"),)
    note = "Of the two scores within a step; below 0 they want opposite things."
    panels.insert(1, Panel("Reward with annotator", agreed, "correlation", note, include=(-1.0, 0.0, 1.0)))
    drawn = ((plot_of(panel, metrics), panel.note) for panel in panels)
    return [(plot, note) for plot, note in drawn if plot is not None]


def _names(metrics: Metrics, prefix: str, suffix: str) -> list[str]:
    """Parts by name, a composite's components after it."""
    found = {name for row in metrics for name in row if name.startswith(prefix) and name.endswith(suffix)}
    return sorted(name.removeprefix(prefix).removesuffix(suffix) for name in found)


def alarm_rows(metrics: Metrics, spec: WatchSpec) -> list[AlarmRow]:
    """Every alarm with what it compared last; none for a run that was not watched."""
    if not any("alarms/raised" in row for row in metrics):
        return []
    most = 1 + spec.length_change
    table = (
        (
            "reward_hacking",
            "annotator's score down from its height while the reward is up",
            _deviations,
            f"up to {number(spec.annotator_fall)}, while the reward is up by {number(spec.reward_rise)}",
        ),
        (
            "length_drift",
            "mean length against the first steps",
            _times,
            f"{number(1 / most)} to {number(most)} times",
        ),
        ("repetition", "rise in repeated 3-grams", percent, f"up to {percent(spec.repetition_rise)}"),
        (
            "entropy_collapse",
            "entropy of a token against the first steps",
            percent,
            f"not under {percent(spec.entropy_share)}",
        ),
        ("kl_bound", "KL to the reference, by token", _nats, f"up to {_nats(spec.kl_nats_per_token)}"),
        ("lost_weight", "importance factor of a token", number, f"not under {number(spec.least_weight)}"),
    )
    return [
        _row(
            metrics,
            name,
            meaning,
            bound,
            told(value) if (value := _latest(metrics, name)) is not None else "",
        )
        for name, meaning, told, bound in table
    ]


def _row(metrics: Metrics, name: str, meaning: str, bound: str, now: str) -> AlarmRow:
    judged = [row for row in metrics if f"alarms/{name}" in row]
    raised = [int(row["step"]) for row in judged if row[f"alarms/{name}"]]
    state: State = "quiet"
    if not judged:
        state = "not judged"
    elif judged[-1][f"alarms/{name}"]:
        state = "raised"
    elif raised:
        state = "was raised"
    return AlarmRow(name.replace("_", " ").replace("kl ", "KL "), meaning, now, bound, state, _when(raised))


def _latest(metrics: Metrics, name: str) -> float | None:
    values = [row[f"alarms/{name}_value"] for row in metrics if f"alarms/{name}_value" in row]
    return values[-1] if values else None


def _when(steps: Sequence[int]) -> str:
    if not steps:
        return ""
    if len(steps) == 1:
        return f"step {steps[0]}"
    return f"{len(steps)} steps, {steps[0]} to {steps[-1]}"


def _deviations(value: float) -> str:
    return f"{number(value)} deviations"


def _times(value: float) -> str:
    return f"{number(value)} times"


def _nats(value: float) -> str:
    return f"{number(value)} nats"

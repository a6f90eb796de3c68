"""The page that `trimtab simulate` draws: load, replicas, backlog, idle share, cost. Knows no simulation.

One HTML file that needs nothing else, without script, in the manner of the demo's report and with its charts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.demo.charts import Plot, Point, Series, line_chart
from orchestrator.demo.files import write_atomically
from orchestrator.simulation.engine import Result
from orchestrator.simulation.scenario import Scenario

POINTS = 480
"""Of a curve: more are averaged, since a page is not wider."""
WIDE = 720, 230


@dataclass(frozen=True, slots=True)
class Card:
    """One chart with its title, legend and a sentence."""

    title: str
    note: str
    legend: Sequence[tuple[str, int]]
    svg: Markup


def write_report(path: Path, scenario: Scenario, results: Sequence[Result]) -> Path:
    """Write the page for `results` of one scenario, the first being ours. Raises NotFound without the folder."""
    write_atomically(path, render(scenario, results))
    return path


def render(scenario: Scenario, results: Sequence[Result]) -> str:
    """The page: the same results always give the same text."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("orchestrator.simulation"), PackageLoader("orchestrator.demo")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("simulation.html.j2").render(
        scenario=scenario, results=results, ours=results[0], cards=cards(scenario, results)
    )


def cards(scenario: Scenario, results: Sequence[Result]) -> list[Card]:
    """The charts, the load first."""
    ours = results[0]
    hours = [at / 3600 for at in ours.times]
    names = [role.name for role in scenario.roles]
    needed = [[scenario.needed(role, at) for at in ours.times] for role in scenario.roles]
    drawn = [
        _card(
            f"Replicas of {name}",
            "What the load keeps busy, what each scaler had (starting ones among them).",
            "replicas",
            [("needed", hours, need), *((one.scaler, hours, one.replicas[name]) for one in results)],
        )
        for name, need in zip(names, needed, strict=True)
    ]
    drawn.append(
        _card(
            f"Backlog by stage, {ours.scaler}",
            "Stream length: groups that wait and groups that are worked on.",
            "groups",
            [(name, hours, ours.backlog[name]) for name in names],
        )
    )
    drawn.append(
        _card(
            "Idle share of the learner",
            "Part of the time in which it waited for groups.",
            "%",
            [(one.scaler, hours, [100 * share for share in one.idle]) for one in results],
        )
    )
    drawn.append(
        _card(
            "Cost of all roles",
            "Price-weighted GPU-hours per hour, the learner left out.",
            "per hour",
            [(one.scaler, hours, one.cost) for one in results],
        )
    )
    return drawn


def _card(
    title: str, note: str, unit: str, curves: Sequence[tuple[str, Sequence[float], Sequence[float]]]
) -> Card:
    series = [Series(label, thinned(xs, ys), tone % 8) for tone, (label, xs, ys) in enumerate(curves)]
    plot = Plot(title, series, unit=unit, x_label="hour", include=(0.0,), width=WIDE[0], height=WIDE[1])
    return Card(title, note, [(one.label, one.tone) for one in series], line_chart(plot))


def thinned(xs: Sequence[float], ys: Sequence[float]) -> list[Point]:
    """At most about `POINTS` points, each the mean of its neighbours."""
    size = max(1, len(xs) // POINTS)
    return [
        (fmean(xs[start : start + size]), fmean(ys[start : start + size]))
        for start in range(0, len(xs), size)
    ]

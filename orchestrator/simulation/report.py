"""The page that `trimtab simulate` draws: replicas against the load, cost and waiting, backlog. Simulates nothing.

One HTML file that needs nothing else, without script, in the manner of the demo's report and with its charts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.demo.charts import Plot, Point, Series, line_chart
from orchestrator.demo.files import write_atomically
from orchestrator.simulation.engine import Result
from orchestrator.simulation.optimum import Optimum
from orchestrator.simulation.scenario import RoleModel, Scenario

POINTS = 480
"""Of a curve: more are averaged, since a page is not wider."""
WIDE = 720, 230
HALF = 540, 230
SMALL = 360, 210
NEEDED = 7
"""Tone of what the load asks for: grey, behind everybody."""


@dataclass(frozen=True, slots=True)
class Card:
    """One chart with its title, legend and a sentence."""

    title: str
    note: str
    legend: Sequence[tuple[str, int]]
    svg: Markup


@dataclass(frozen=True, slots=True)
class Curve:
    """A label, its colour, a value for each tick."""

    label: str
    tone: int
    values: Sequence[float]


def write_report(path: Path, scenario: Scenario, results: Sequence[Result], optimum: Optimum) -> Path:
    """Write the page for `results` of one scenario, the first being ours. Raises NotFound without the folder."""
    write_atomically(path, render(scenario, results, optimum))
    return path


def render(scenario: Scenario, results: Sequence[Result], optimum: Optimum) -> str:
    """The page: the same results always give the same text. `optimum` is for the groups of the first result."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("orchestrator.simulation"), PackageLoader("orchestrator.demo")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("simulation.html.j2").render(
        scenario=scenario,
        results=results,
        ours=results[0],
        optimum=optimum,
        roles=role_cards(scenario, results[0]),
        others=other_cards(scenario, results),
        sums=sum_cards(scenario, results),
        backlog=backlog_card(scenario, results[0]),
    )


def role_cards(scenario: Scenario, ours: Result) -> list[Card]:
    """For each role what the load keeps busy and what our scaler had: two curves a chart."""
    return [
        _card(
            f"Replicas of {role.name}",
            "",
            "replicas",
            ours,
            [_needed(scenario, role, ours), Curve(ours.scaler, 1, ours.replicas[role.name])],
        )
        for role in scenario.roles
    ]


def other_cards(scenario: Scenario, results: Sequence[Result]) -> list[Card]:
    """The same for the first role alone, one chart for each of the others, all to the same height."""
    role = scenario.roles[0]
    top = float(max(max(one.replicas[role.name]) for one in results))
    return [
        _card(
            one.scaler,
            f"{one.idle_share:.1%} idle, {one.starts:,} starts",
            "replicas",
            one,
            [_needed(scenario, role, one), Curve(one.scaler, tone, one.replicas[role.name])],
            size=SMALL,
            top=top,
        )
        for tone, one in enumerate(results[1:], start=2)
    ]


def sum_cards(scenario: Scenario, results: Sequence[Result]) -> list[Card]:
    """What each scaler has cost so far, and how long its learner has waited so far."""
    tick, warm = scenario.tick_seconds, scenario.warm_seconds
    cost, waited = [], []
    for tone, one in enumerate(results, start=1):
        counted = [at > warm for at in one.times]
        cost.append(Curve(one.scaler, tone, _running(one.cost, counted, tick / 3600)))
        waited.append(Curve(one.scaler, tone, _running(one.idle, counted, tick / 60)))
    ours = results[0]
    return [
        _card(
            "Cost so far", "Price-weighted GPU-hours of all scaled roles.", "GPU-hours", ours, cost, size=HALF
        ),
        _card(
            "Waiting so far",
            "Time in which the learner had too few groups.",
            "minutes",
            ours,
            waited,
            size=HALF,
        ),
    ]


def backlog_card(scenario: Scenario, ours: Result) -> Card:
    """Stream lengths under our scaler."""
    return _card(
        "Backlog by stage",
        f"With {ours.scaler}. Stream length: groups that wait and groups that are worked on.",
        "groups",
        ours,
        [
            Curve(role.name, tone, ours.backlog[role.name])
            for tone, role in zip((0, 5, 6), scenario.roles, strict=False)
        ],
    )


def _needed(scenario: Scenario, role: RoleModel, result: Result) -> Curve:
    return Curve("kept busy by the load", NEEDED, [scenario.needed(role, at) for at in result.times])


def _running(values: Sequence[float], counted: Sequence[bool], each: float) -> list[float]:
    return list(accumulate(value * each * count for value, count in zip(values, counted, strict=True)))


def _card(
    title: str,
    note: str,
    unit: str,
    result: Result,
    curves: Sequence[Curve],
    *,
    size: tuple[int, int] = WIDE,
    top: float = 0.0,
) -> Card:
    hours = [at / 3600 for at in result.times]
    series = [Series(one.label, thinned(hours, one.values), one.tone) for one in curves]
    plot = Plot(title, series, unit=unit, x_label="hour", include=(0.0, top), width=size[0], height=size[1])
    return Card(title, note, [(one.label, one.tone) for one in series], line_chart(plot))


def thinned(xs: Sequence[float], ys: Sequence[float]) -> list[Point]:
    """At most about `POINTS` points, each the mean of its neighbours."""
    size = max(1, len(xs) // POINTS)
    return [
        (fmean(xs[start : start + size]), fmean(ys[start : start + size]))
        for start in range(0, len(xs), size)
    ]

"""The report of a run of rounds: one HTML page made from rounds.json, ratings.json and writing.json. Refuses to know
how they came.

What models wrote is in it: every value passes through autoescape, and the page carries no script.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.demo.charts import Plot, Rule, Series, line_chart
from orchestrator.demo.files import write_atomically
from orchestrator.demo.marks import interval_mark
from orchestrator.demo.scales import number
from orchestrator.demo.wording import duration
from orchestrator.iterate import contest, state
from orchestrator.iterate import writing as written
from orchestrator.iterate.writing import Writing

REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Rated:
    """A version's rating with its 95 % interval."""

    version: int
    rating: float
    low: float
    high: float
    mark: Markup


def write_report(folder: Path, rounds: state.Rounds) -> Path:
    """Write report.html and summary.json into `folder`; the path of the page."""
    file = folder / "ratings.json"
    ratings = json.loads(file.read_text()) if file.is_file() else []
    path, writing = folder / REPORT_FILE, written.read(folder)
    figures = summary(rounds, ratings, writing)
    write_atomically(folder / SUMMARY_FILE, json.dumps(figures, indent=2) + "\n")
    write_atomically(path, render(folder.name, rounds, rated(ratings), writing))
    return path


def summary(
    rounds: state.Rounds, ratings: Sequence[dict[str, Any]], writing: Writing | None
) -> dict[str, Any]:
    """The figures: what each round beats the one before by, the ratings, and each version's variety."""
    wins = [one.previous() for one in rounds.rounds]
    return {
        "rounds": len(rounds.rounds),
        "reference": rounds.reference,
        "policy_init": rounds.policy_init,
        "stopped": rounds.stopped,
        "win_rates": [one.win_rate for one in wins if one],
        "win_rates_low": [one.low for one in wins if one],
        "comparisons": [one.comparisons for one in wins if one],
        "seconds": sum(sum(one.seconds.values()) for one in rounds.rounds),
        "ratings": list(ratings),
        "distinct": [] if writing is None else [one.distinct for one in writing.versions],
    }


def rated(ratings: Sequence[dict[str, Any]]) -> list[Rated]:
    """Ratings by version, oldest first, with marks on one scale."""
    if not ratings:
        return []
    low, high = min(one["low"] for one in ratings), max(one["high"] for one in ratings)
    within = (low, high) if high > low else (low - 1, high + 1)
    found = [
        Rated(
            version=int(str(one["subject"]).removeprefix("policy@").split()[0]),
            rating=one["rating"],
            low=one["low"],
            high=one["high"],
            mark=interval_mark(one["low"], one["rating"], one["high"], within=within),
        )
        for one in ratings
    ]
    return sorted(found, key=lambda one: one.version)


def elo_chart(ratings: Sequence[Rated]) -> Markup | None:
    """Elo over versions, with the ends of the intervals as thin curves; None for fewer than two versions."""
    if len(ratings) < 2:
        return None
    series = [
        Series("Elo", [(float(one.version), one.rating) for one in ratings], 0),
        Series("2.5 %", [(float(one.version), one.low) for one in ratings], 3),
        Series("97.5 %", [(float(one.version), one.high) for one in ratings], 3),
    ]
    rule = Rule(ratings[0].rating, "the initial model")
    return line_chart(Plot("Elo by version", series, "Elo", "version", [rule], width=440, height=225))


def matrix(rounds: state.Rounds) -> list[tuple[str, list[str]]]:
    """Each version's win rate against each earlier one, as text; empty above the diagonal."""
    width = len(rounds.rounds)
    return [
        (
            contest.source(one.number),
            [
                next((f"{row.win_rate:.3f}" for row in one.against if row.version == older), "")
                for older in range(width)
            ],
        )
        for one in rounds.rounds
    ]


def render(name: str, rounds: state.Rounds, ratings: Sequence[Rated], writing: Writing | None) -> str:
    """The page: the same files always give the same text."""
    environment = Environment(
        loader=PackageLoader("orchestrator.iterate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration}
    return environment.get_template("rounds.html.j2").render(
        name=name,
        rounds=rounds,
        ratings=ratings,
        chart=elo_chart(ratings),
        matrix=matrix(rounds),
        writing=writing,
        versions=[contest.source(version) for version in range(len(rounds.rounds))],
        source=contest.source,
        style=Markup((Path(__file__).parents[1] / "demo" / "templates" / "report.css").read_text()),  # noqa: S704
    )

"""`trimtab plan` and `trimtab simulate`: their flags and what they print. Each imports what it needs when it runs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.local.options import Format
from services.common.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from orchestrator.planning.explain import Explained
    from orchestrator.simulation.engine import Result

Output = Annotated[Format, typer.Option("-o", "--output", help="How to print.")]


def register(app: typer.Typer) -> None:
    """Add both commands to the program."""
    app.command()(plan)
    app.command()(simulate)


def plan(
    run_file: Annotated[
        Path,
        typer.Option(
            "-f", "--file", metavar="RUN.YAML", help="The run, or a RewardModel.", show_default=False
        ),
    ],
    observed: Annotated[
        Path, typer.Option(metavar="OBS.JSON", help="What was seen of it.", show_default=False)
    ],
    now: Annotated[
        float | None, typer.Option(help="Seconds, in the file's clock.", show_default="when it was observed")
    ] = None,
    output: Output = Format.TEXT,
) -> None:
    """What the scaler would do with a run or reward model now, and its arithmetic. Touches nothing."""
    from orchestrator.planning.explain import as_values, explain, explain_service
    from orchestrator.planning.scaling import decide
    from orchestrator.planning.serving import ServiceSpec, decide_service
    from orchestrator.planning_files import read_observed, read_plan, read_service_observed

    spec = read_plan(run_file)
    if isinstance(spec, ServiceSpec):
        asked = read_service_observed(observed)
        told = decide_service(spec, asked, _moment(now, asked.at))
        values, page = as_values(told), explain_service(spec, asked, told)
    else:
        seen = read_observed(observed, spec)
        decision = decide(spec, seen, _moment(now, seen.at))
        values, page = as_values(decision), explain(spec, decision)
    if output is Format.JSON:
        print(json.dumps(values))
    else:
        _print(page)


def _moment(now: float | None, seen_at: float) -> float:
    if now is not None and not seen_at <= now < math.inf:
        raise ConfigError(f"--now: expected at least {seen_at:g}, when it was observed, found {now:g}")
    return seen_at if now is None else now


def simulate(
    shape: Annotated[str, typer.Option(help="Load: day, or a shape of benchmarks.scaling.")] = "day",
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 1,
    hours: Annotated[float, typer.Option(min=0.5, max=168, help="Simulated time.")] = 24.0,
    out: Annotated[Path, typer.Option(help="Where the drawn report goes.")] = Path("scaling-report.html"),
    output: Output = Format.TEXT,
) -> None:
    """Run a day of load against simulated pools: Auto beside HPA and KEDA; draws a report."""
    from orchestrator.simulation.optimum import clairvoyant
    from orchestrator.simulation.report import write_report
    from orchestrator.simulation.runs import simulate_all

    scenario, results = simulate_all(shape, seed, hours * 3600)
    optimum = clairvoyant(scenario, results[0])
    write_report(out, scenario, results, optimum)
    if output is Format.JSON:
        scalers = [_values(result) for result in results]
        least = optimum.cost_per_thousand
        print(json.dumps({"report": str(out), "scalers": scalers, "optimum_cost_per_thousand": least}))
        return
    _print_results(results)
    typer.echo(f"no schedule could have cost less than {optimum.cost_per_thousand:.2f} for what Auto trained")
    typer.echo(f"{out} draws replicas, cost, waiting and backlog")


def _print(page: Explained) -> None:
    console = _console()
    console.print(page.verdict, soft_wrap=True)
    for line in page.sums:
        console.print(f"  {line}")
    if page.rows:
        console.print(_table(page))
    for line in (*page.reasons, *(f"-> {action}" for action in page.actions or ("nothing to do",))):
        console.print(line, soft_wrap=True)


def _table(page: Explained) -> Table:
    from rich.table import Table

    from orchestrator.planning.explain import COLUMNS

    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in page.rows:
        table.add_row(*row)
    return table


def _console() -> Console:
    """As wide as the terminal; where there is none, wide enough that no table is cut."""
    from rich.console import Console

    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)


def _values(result: Result) -> dict[str, object]:
    return {
        "scaler": result.scaler,
        "idle_share": result.idle_share,
        "cost_per_thousand": result.cost_per_thousand,
        "cost_per_thousand_with_learner": result.whole_cost_per_thousand,
        "trained_groups": result.trained_groups,
        "replica_hours": result.replica_hours,
        "replica_starts": result.starts,
    }


def _print_results(results: list[Result]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("scaler", "idle", "cost/1,000", "with learner", "groups", "starts"):
        table.add_column(column, justify="left" if column == "scaler" else "right")
    for one in results:
        table.add_row(
            one.scaler,
            f"{one.idle_share:.2%}",
            f"{one.cost_per_thousand:.2f}",
            f"{one.whole_cost_per_thousand:.2f}",
            f"{one.trained_groups:,}",
            str(one.starts),
        )
    _console().print(table)

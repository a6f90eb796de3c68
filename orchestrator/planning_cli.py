"""`trimtab plan` and `trimtab simulate`: their flags and what they print. Each imports what it needs when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.local.options import Format

if TYPE_CHECKING:
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
        told = decide_service(spec, asked, asked.at if now is None else now)
        values, page = as_values(told), explain_service(spec, asked, told)
    else:
        seen = read_observed(observed)
        decision = decide(spec, seen, seen.at if now is None else now)
        values, page = as_values(decision), explain(spec, decision)
    if output is Format.JSON:
        print(json.dumps(values))
    else:
        _print(page)


def simulate(
    shape: Annotated[str, typer.Option(help="Load: day, or a shape of benchmarks.scaling.")] = "day",
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 1,
    hours: Annotated[float, typer.Option(min=0.5, max=168, help="Simulated time.")] = 24.0,
    out: Annotated[Path, typer.Option(help="Where the drawn report goes.")] = Path("scaling-report.html"),
    output: Output = Format.TEXT,
) -> None:
    """Run a day of load against simulated pools: Auto beside HPA and KEDA; draws a report."""
    from orchestrator.simulation.report import write_report
    from orchestrator.simulation.runs import simulate_all

    scenario, results = simulate_all(shape, seed, hours * 3600)
    write_report(out, scenario, results)
    if output is Format.JSON:
        print(json.dumps({"report": str(out), "scalers": [_values(result) for result in results]}))
        return
    _print_results(results)
    typer.echo(f"{out} draws replicas, backlog, idle share and cost")


def _print(page: Explained) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(page.verdict)
    for line in page.sums:
        console.print(f"  {line}")
    if page.rows:
        console.print(_table(page))
    for line in page.actions or ("nothing to do",):
        console.print(f"-> {line}")


def _table(page: Explained) -> Table:
    from rich.table import Table

    from orchestrator.planning.explain import COLUMNS

    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(COLUMNS):
        words = index in (0, len(COLUMNS) - 1)
        table.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=index == 0)
    for row in page.rows:
        table.add_row(*row)
    return table


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
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("scaler", "idle share", "cost per 1,000 groups", "with the learner", "groups", "starts"):
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
    Console(highlight=False, markup=False).print(table)

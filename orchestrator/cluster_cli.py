"""The commands about Kubernetes: offline (`crds`, `render`), over a cluster, and the operator itself. Flags only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from orchestrator.local.options import Format

File = Annotated[
    Path,
    typer.Option(
        "-f", "--file", metavar="FILE", help="TrainingRuns and RewardModels, YAML.", show_default=False
    ),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="How to reach the cluster.", show_default="KUBECONFIG, or the pod's own"
    ),
]
Context = Annotated[str | None, typer.Option(help="Of the kubeconfig.", show_default="its current one")]
Namespace = Annotated[
    str | None, typer.Option("-n", "--namespace", help="Of the run.", show_default="the context's")
]
Output = Annotated[Format, typer.Option("-o", "--output", help="How to print.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A TrainingRun.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (crds, render, operator, submit, runs, suspend, resume, scale, delete):
        app.command()(command)


def crds(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="One file each there.", show_default="stdout"),
    ] = None,
) -> None:
    """Print the CustomResourceDefinitions, or write them as the chart trimtab-crds has them."""
    from orchestrator.cluster.documents import crd_files

    files = crd_files()
    if out is None:
        typer.echo("---\n".join(files.values()), nl=False)
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
        typer.echo(out / name)


def render(
    file: File,
    namespace: Annotated[
        str, typer.Option("-n", "--namespace", help="Where an object names none.")
    ] = "default",
    attempt: Annotated[int, typer.Option(min=1, help="Of the learner's Job.")] = 1,
    update: Annotated[
        bool, typer.Option("--update", help="As applied to what is there already: without replicas.")
    ] = False,
) -> None:
    """Print the manifests that the operator would apply for each object of the file."""
    from orchestrator.cluster.documents import render_file

    typer.echo(render_file(file, namespace, attempt=attempt, update=update), nl=False)


def operator(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="One field, for example resync_seconds=60."),
    ] = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Look after the cluster's TrainingRuns and RewardModels until SIGTERM."""
    from orchestrator.cluster.operator.main import run_operator

    raise typer.Exit(run_operator(config, overrides or [], kubeconfig, context))


def submit(
    file: File,
    namespace: Namespace = None,
    output: Output = Format.TEXT,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Give the cluster what a file describes: it is checked first, then made, or changed if it is there."""
    from orchestrator.cluster.commands import Cluster, as_json, to_submit

    documents = to_submit(file, kubeconfig, context, namespace)
    made = Cluster(kubeconfig, context, namespace).submit(documents)
    if output is Format.JSON:
        typer.echo(as_json(made))
        return
    for item in made:
        metadata = item["metadata"]
        typer.echo(f"{item['kind']} {metadata['name']} in {metadata['namespace']} is submitted")


def runs(
    name: Annotated[str | None, typer.Argument(help="One run, in full.", show_default="all")] = None,
    namespace: Namespace = None,
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="Of all namespaces.")] = False,
    output: Output = Format.TEXT,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """The cluster's TrainingRuns: state, step, reward, replicas."""
    from datetime import UTC, datetime

    from orchestrator.cluster.commands import Cluster, as_json, described, table

    cluster, now = Cluster(kubeconfig, context, namespace), datetime.now(UTC)
    if name is not None:
        run = cluster.run(name)
        typer.echo(as_json(run) if output is Format.JSON else "\n".join(described(run, now)))
        return
    found = cluster.runs(everywhere=everywhere)
    if output is Format.JSON:
        typer.echo(as_json(found))
    elif found:
        typer.echo("\n".join(table(found, now, everywhere=everywhere)))
    else:
        typer.echo("there are no runs" if everywhere else f"there are no runs in {cluster.namespace}")


def suspend(
    name: RunName, namespace: Namespace = None, kubeconfig: Kubeconfig = None, context: Context = None
) -> None:
    """Let a run write a checkpoint, then give its pods back."""
    from orchestrator.cluster.commands import Cluster

    Cluster(kubeconfig, context, namespace).suspend(name, suspended=True)
    typer.echo(f"{name} will be suspended after its checkpoint")


def resume(
    name: RunName, namespace: Namespace = None, kubeconfig: Kubeconfig = None, context: Context = None
) -> None:
    """Let a suspended run go on from its checkpoint."""
    from orchestrator.cluster.commands import Cluster

    Cluster(kubeconfig, context, namespace).suspend(name, suspended=False)
    typer.echo(f"{name} goes on")


def scale(
    name: RunName,
    counts: Annotated[
        list[str], typer.Argument(metavar="ROLE=N...", help="policy=4 reward-hh=2", show_default=False)
    ],
    namespace: Namespace = None,
    output: Output = Format.TEXT,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Set the replicas of roles that are not scaled by the planner."""
    from orchestrator.cluster.commands import Cluster, as_json, read_counts

    wanted = read_counts(counts)
    lines = Cluster(kubeconfig, context, namespace).scale(name, wanted)
    typer.echo(as_json({"run": name, "replicas": wanted}) if output is Format.JSON else "\n".join(lines))


def delete(
    name: RunName,
    namespace: Namespace = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until nothing is left of it.")] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Delete a run: its pods drain, then everything that belongs to it goes. Its files stay."""
    from orchestrator.cluster.commands import Cluster

    Cluster(kubeconfig, context, namespace).delete(name, wait=wait)
    typer.echo(f"{name} is gone" if wait else f"{name} is being deleted")


class At(NamedTuple):
    """Which cluster, and where in it; None: as the kubeconfig says."""

    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str | None = None


def logs(run: str, service: str, lines: int, *, follow: bool, at: At) -> None:
    """`trimtab logs --cluster RUN`: the last lines of its pods."""
    from orchestrator.cluster.commands import Cluster
    from services.common.errors import InvalidInput

    if follow:
        raise InvalidInput(f"--follow is for runs here: kubectl logs -f -l trimtab.dev/run={run}")
    Cluster(*at).logs(run, service, lines, lambda pod, line: typer.echo(f"{pod}  {line}"))


def refuse_without_run(**given: object) -> None:
    """Flags about a cluster mean nothing for a run here. Raises InvalidInput."""
    from services.common.errors import InvalidInput

    if named := [name for name, value in given.items() if value is not None]:
        raise InvalidInput(f"--{named[0]} is for a run on a cluster: give --cluster RUN, too")
